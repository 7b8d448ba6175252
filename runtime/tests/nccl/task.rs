//! What a rank is told to do.

use crate::common::Spec;
use crate::ranks::Rank;
use crate::{calls, collectives, errors, machine, races};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A task; its outcome is JSON that the test which gave it understands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Collectives against their definition.
    Collectives(collectives::Subject),
    /// Some steps of a training, with the calls of each.
    Steps(Spec),
    /// A training until it fails.
    TrainUntilFailure(Spec),
    /// Exchanges until one fails, and what another thread does meanwhile.
    ExchangeUntilFailure { abort_in: Option<u64> },
    /// What a use of a tensor before its collective is done gives.
    Race(races::Race),
    /// What connecting says.
    Connect,
    /// What the machine has.
    Machine(machine::Question),
}

impl Task {
    pub(crate) fn run(&self, rank: &Rank) -> Value {
        match self {
            Task::Collectives(subject) => subject.check(rank),
            Task::Steps(spec) => calls::take_steps(rank, spec),
            Task::TrainUntilFailure(spec) => errors::train_until_failure(rank, spec),
            Task::ExchangeUntilFailure { abort_in } => errors::exchange_until_failure(rank, *abort_in),
            Task::Race(race) => race.run(rank),
            Task::Connect => Value::from(rank.connect().err().map(|error| error.to_string())),
            Task::Machine(question) => question.answer(rank),
        }
    }
}
