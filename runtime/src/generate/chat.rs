//! A chat at the terminal.

use std::io::BufRead;

use anyhow::{Context, Result};
use zerofold_data::{ChatTemplate, Message, Role};

use super::{Generator, print_piece, system_messages};

/// Reads questions from standard input, one line each, and answers them, each in view of all before, until the input ends.
///
/// # Errors
/// A template that refuses the conversation, one longer than the model's context, a closed output.
pub(super) fn run(generator: &mut Generator, template: &ChatTemplate, system: Option<&str>) -> Result<()> {
    eprintln!("A line is a question. /new starts over, an empty line or Ctrl-D ends.");
    let mut messages = system_messages(system);
    let mut lines = std::io::stdin().lock().lines();
    loop {
        print_piece("\n> ")?;
        let Some(line) = lines.next() else { break };
        let line = line.context("cannot read from the terminal")?;
        match line.trim() {
            "" => break,
            "/new" => messages = system_messages(system),
            question => {
                messages.push(Message::new(Role::User, question));
                let prompt = generator.encode(&template.render(&messages.clone().into(), true)?, false)?;
                let answer = generator.generate(&prompt, &mut print_piece)?;
                print_piece("\n")?;
                messages.push(Message::new(Role::Assistant, answer));
            }
        }
    }
    Ok(())
}
