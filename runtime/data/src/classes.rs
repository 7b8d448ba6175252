//! What rows of a classifier tell: a class, several classes, or numbers.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde_json::Value;
use zerofold_configs::ProblemType;

use crate::columns::Columns;
use crate::error::{DataError, Fault};
use crate::prepare::SHARE;
use crate::rows::{kind, no_row, parse_object};
use crate::source::{RawRow, RawRows, Sources, Unit};

/// The classes that rows are of, and how the model is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// What is told of a row.
    pub problem: ProblemType,
    /// The names of the classes, or of the numbers, by their places.
    pub names: Vec<String>,
    /// The model tells it at the last token, as causal ones do; else at the first.
    pub at_last_token: bool,
}

/// What a row tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    /// The class by its number.
    Class(i32),
    /// A number for each class, 1 where the row is of it; or the numbers themselves.
    Values(Vec<f32>),
}

impl Classes {
    /// What the column `label` of a row tells.
    pub(crate) fn told(&self, label: &Value) -> Result<Told, Fault> {
        match (self.problem, label) {
            (ProblemType::SingleLabel, label) => Ok(Told::Class(self.number(label)? as i32)),
            (ProblemType::MultiLabel, Value::Array(entries)) => self.several(entries).map(Told::Values),
            (ProblemType::Regression, Value::Array(entries)) => {
                self.as_many(entries.len())?;
                Ok(Told::Values(entries.iter().map(value).collect::<Result<_, _>>()?))
            }
            (ProblemType::Regression, label) => {
                self.as_many(1)?;
                Ok(Told::Values(vec![value(label)?]))
            }
            (ProblemType::MultiLabel, other) => {
                Err(Fault::new(format!("expected `label` to be a list of classes, found {}", kind(other)), MULTI))
            }
        }
    }

    /// How many classes rows are counted of; none of a regression.
    pub(crate) fn count(&self) -> usize {
        if self.problem == ProblemType::Regression { 0 } else { self.names.len() }
    }

    /// Counts a row with these labels, or numbers, as one of its classes.
    pub(crate) fn tally(&self, labels: &[i32], values: &[f32], rows: &mut [u64]) {
        match self.problem {
            ProblemType::SingleLabel => {
                let class = labels.iter().find_map(|&label| usize::try_from(label).ok());
                class.and_then(|class| rows.get_mut(class)).into_iter().for_each(|rows| *rows += 1);
            }
            ProblemType::MultiLabel => {
                rows.iter_mut().zip(values).filter(|(_, value)| **value > 0.5).for_each(|(rows, _)| *rows += 1);
            }
            ProblemType::Regression => {}
        }
    }

    /// The classes with so many rows each.
    pub(crate) fn with_rows(&self, rows: &[u64]) -> Vec<(String, u64)> {
        self.names.iter().cloned().zip(rows.iter().copied()).collect()
    }

    /// What a row tells, in words: of labels that have one, or of numbers.
    pub(crate) fn words(&self, labels: &[i32], values: &[f32]) -> String {
        let name = |class: usize| self.names.get(class).cloned().unwrap_or_default();
        let flagged = || values.iter().enumerate().filter(|(_, value)| **value > 0.5).map(|(class, _)| name(class));
        let words: Vec<String> = match self.problem {
            ProblemType::SingleLabel => {
                let class = labels.iter().find_map(|&label| usize::try_from(label).ok());
                class.map(name).into_iter().collect()
            }
            ProblemType::MultiLabel => flagged().collect(),
            ProblemType::Regression => values.iter().map(f32::to_string).collect(),
        };
        if words.is_empty() { "(no class)".to_owned() } else { words.join(", ") }
    }

    fn as_many(&self, found: usize) -> Result<(), Fault> {
        match self.names.len() {
            expected if expected == found => Ok(()),
            expected => Err(Fault::new(
                format!("`label` is of {found}, and the model tells {expected}: {}", self.names.join(", ")),
                "num_labels says how many a model tells; all rows have as many",
            )),
        }
    }

    /// The number of a class by its name or its number.
    fn number(&self, label: &Value) -> Result<usize, Fault> {
        let count = self.names.len();
        let found = match label {
            Value::String(name) => self.names.iter().position(|known| known == name),
            Value::Number(number) if self.is_called_otherwise(number) => {
                let message = format!("`label` is {number}, and a class that is not number {number} is called so");
                return Err(Fault::new(message, format!("give classes by their names, as text: \"{number}\"")));
            }
            Value::Bool(yes) if count == 2 => Some(usize::from(*yes)),
            Value::Number(number) => {
                let number = number.as_u64().or(whole(number));
                number.and_then(|number| usize::try_from(number).ok()).filter(|&number| number < count)
            }
            other => {
                let message = format!("expected `label` to be a class, found {}", kind(other));
                return Err(Fault::new(message, "a class is given by its number or its name"));
            }
        };
        found.ok_or_else(|| {
            const SHOWN: usize = 12;
            let mut names = self.names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            if count > SHOWN {
                names = format!("{names} and {} more", count - SHOWN);
            }
            Fault::new(
                format!("`label` is {label}, and the model has {count} classes: {names}"),
                "a class is given by its number from 0 or by its name; num_labels says how many there are",
            )
        })
    }

    /// Whether another class than the one of this number is called like it.
    fn is_called_otherwise(&self, number: &serde_json::Number) -> bool {
        let called = self.names.iter().position(|name| *name == number.to_string());
        called.is_some_and(|called| number.as_u64() != Some(called as u64))
    }

    /// A list of classes, or of 0 and 1 for each class.
    fn several(&self, entries: &[Value]) -> Result<Vec<f32>, Fault> {
        let flag = |entry: &Value| match entry {
            Value::Bool(yes) => Some(f32::from(u8::from(*yes))),
            entry => entry.as_f64().filter(|number| *number == 0.0 || *number == 1.0).map(|number| number as f32),
        };
        if entries.len() == self.names.len()
            && let Some(flags) = entries.iter().map(flag).collect::<Option<Vec<_>>>()
        {
            return Ok(flags);
        }
        let mut values = vec![0.0; self.names.len()];
        for entry in entries {
            let class = self.number(entry)?;
            if std::mem::replace(&mut values[class], 1.0) > 0.0 {
                let message = format!("`label` names the class {} twice", self.names[class]);
                return Err(Fault::new(message, MULTI));
            }
        }
        Ok(values)
    }
}

/// No classifier tells nearly as many classes by their numbers.
const MOST_CLASSES: u64 = 100_000;

/// A number that is written as a fraction and is none.
fn whole(number: &serde_json::Number) -> Option<u64> {
    number.as_f64().filter(|number| number.fract() == 0.0 && (0.0..9e15).contains(number)).map(|number| number as u64)
}

const MULTI: &str = "a row of several classes has a list of their names or numbers, or 0 and 1 for each class there is";

fn value(entry: &Value) -> Result<f32, Fault> {
    let number = entry.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
    number.ok_or_else(|| {
        let found = if entry.is_number() { entry.to_string() } else { kind(entry).to_owned() };
        Fault::new(
            format!("expected `label` to be a number, found {found}"),
            "a regression is on finite numbers of 32 bits",
        )
    })
}

/// What the labels of a data set are, over all its rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FoundLabels {
    /// Names, in their order by code points.
    pub names: BTreeSet<String>,
    /// The largest whole number.
    pub largest: Option<u64>,
    /// There are whole numbers below 0.
    pub negative: bool,
    /// There are true and false.
    pub flags: bool,
    /// There are numbers that are not whole.
    pub numbers: bool,
    /// There are lists.
    pub lists: bool,
    /// The entries of the longest list.
    pub longest: usize,
    /// All lists are as long, and hold 0 and 1 alone.
    pub all_flags: bool,
    /// Where they were seen, for errors.
    pub places: LabelPlaces,
}

/// Rows in which labels of a kind were seen, as they are named before a message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabelPlaces {
    /// The first name, and its row.
    pub name: Option<(String, String)>,
    /// The first whole number.
    pub number: Option<String>,
    /// The largest whole number.
    pub largest: Option<String>,
    /// The first number below 0.
    pub negative: Option<String>,
    /// The first list, and how many entries it has.
    pub list: Option<(String, usize)>,
    /// The first list of another length.
    pub other_list: Option<(String, usize)>,
}

impl LabelPlaces {
    fn and(self, other: LabelPlaces, other_has_larger: bool) -> LabelPlaces {
        let differs = |(_, entries): &(String, usize)| self.list.as_ref().is_some_and(|(_, first)| first != entries);
        let other_list = self.other_list.or(other.list.clone().filter(differs)).or(other.other_list);
        LabelPlaces {
            name: self.name.or(other.name),
            number: self.number.or(other.number),
            largest: if other_has_larger { other.largest } else { self.largest },
            negative: self.negative.or(other.negative),
            list: self.list.or(other.list),
            other_list,
        }
    }
}

impl FoundLabels {
    /// Looks at the column `label` of all rows of these sources.
    ///
    /// # Errors
    /// A row without one, or that cannot be read; no rows.
    pub fn of(sources: &Sources, columns: &Columns) -> Result<FoundLabels, DataError> {
        FoundLabels::look(sources, columns, false)
    }

    /// The same of the rows that have one, of data that are to be audited.
    ///
    /// # Errors
    /// Files that cannot be read; no rows.
    pub fn of_readable(sources: &Sources, columns: &Columns) -> Result<FoundLabels, DataError> {
        FoundLabels::look(sources, columns, true)
    }

    fn look(sources: &Sources, columns: &Columns, only_readable: bool) -> Result<FoundLabels, DataError> {
        let columns = columns.clone().of_classifier();
        let (mut found, mut rows, mut count) =
            (FoundLabels { all_flags: true, ..Self::default() }, RawRows::new(sources), 0);
        loop {
            let chunk = rows.chunk();
            count += chunk.rows.len();
            let look = |row: &RawRow| {
                let label = parse_object(row.content.clone()).and_then(|object| columns.label(&object));
                match label {
                    Ok(label) => Ok((label, row.file, row.number)),
                    Err(fault) => Err((row.file, row.number, fault)),
                }
            };
            let labels: Vec<Result<(Value, usize, u64), _>> =
                chunk.rows.par_iter().with_min_len(SHARE).map(look).collect();
            for label in labels {
                match label {
                    Ok((label, file, number)) => {
                        let place = || {
                            let unit = rows.units().get(file).copied().unwrap_or(Unit::Line);
                            unit.place(&sources.files()[file].shown(), number)
                        };
                        found.add(&label, &place);
                    }
                    Err(_) if only_readable => {}
                    Err((file, number, fault)) => return Err(rows.fault(file, number, fault)),
                }
            }
            match chunk.error {
                Some(error) => return Err(error),
                None if chunk.ended && count == 0 => return Err(no_row(sources)),
                None if chunk.ended => return Ok(found),
                None => {}
            }
        }
    }

    /// Adds those of other sources.
    #[must_use]
    pub fn and(mut self, other: FoundLabels) -> FoundLabels {
        self.all_flags &= other.all_flags && (self.longest == other.longest || !self.lists || !other.lists);
        self.names.extend(other.names);
        self.places = self.places.and(other.places, other.largest > self.largest);
        self.largest = self.largest.max(other.largest);
        self.longest = self.longest.max(other.longest);
        FoundLabels {
            flags: self.flags | other.flags,
            numbers: self.numbers | other.numbers,
            lists: self.lists | other.lists,
            negative: self.negative | other.negative,
            ..self
        }
    }

    fn add(&mut self, label: &Value, place: &dyn Fn() -> String) {
        let places = &mut self.places;
        match label {
            Value::String(name) => {
                places.name.get_or_insert_with(|| (name.clone(), place()));
                if !self.names.contains(name) {
                    self.names.insert(name.clone());
                }
            }
            Value::Bool(_) => {
                places.number.get_or_insert_with(place);
                self.flags = true;
            }
            Value::Number(number) => match number.as_u64().or(whole(number)) {
                Some(number) => {
                    places.number.get_or_insert_with(place);
                    if self.largest.is_none_or(|largest| number > largest) {
                        places.largest = Some(place());
                        self.largest = Some(number);
                    }
                }
                None if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
                    places.negative.get_or_insert_with(place);
                    self.negative = true;
                }
                None => self.numbers = true,
            },
            Value::Array(entries) => {
                let (_, first) = places.list.get_or_insert_with(|| (place(), entries.len()));
                if *first != entries.len() {
                    places.other_list.get_or_insert_with(|| (place(), entries.len()));
                }
                self.all_flags &= !self.lists || self.longest == entries.len();
                self.all_flags &=
                    entries.iter().all(|entry| entry.is_boolean() || matches!(entry.as_f64(), Some(0.0 | 1.0)));
                self.lists = true;
                self.longest = self.longest.max(entries.len());
                entries.iter().for_each(|entry| self.add(entry, place));
            }
            Value::Null | Value::Object(_) => {}
        }
    }

    /// What such labels are told of: numbers that are not whole are numbers, lists of other things are several classes, all else is one
    /// class of several.
    pub fn problem(&self) -> ProblemType {
        match (self.lists, self.numbers) {
            (_, true) => ProblemType::Regression,
            (true, false) => ProblemType::MultiLabel,
            (false, false) => ProblemType::SingleLabel,
        }
    }

    /// The names of the classes, by their numbers: those that are found, else `LABEL_0` and so on, as transformers calls them, at
    /// least two. Of a regression one for each number.
    ///
    /// # Errors
    /// [`DataError::Plan`] where there are names and numbers, and for numbers that no class has.
    pub fn classes(&self, problem: ProblemType) -> Result<Vec<String>, DataError> {
        if problem != ProblemType::Regression && !self.names.is_empty() && (self.largest.is_some() || self.flags) {
            let (name, named) = self.places.name.clone().unwrap_or_default();
            let numbered = self.places.number.clone().unwrap_or_default();
            return Err(DataError::Plan {
                message: format!(
                    "`label` is a number in some rows ({numbered}) and a name in others ({named}: {name:?})"
                ),
                hint: "give all classes by their names, or all by their numbers".into(),
            });
        }
        if problem != ProblemType::Regression && (self.negative || self.largest.is_some_and(|it| it >= MOST_CLASSES)) {
            let (what, place) = match self.negative {
                true => ("below 0".to_owned(), &self.places.negative),
                false => (format!("{MOST_CLASSES} or larger"), &self.places.largest),
            };
            let place = place.as_deref().unwrap_or_default();
            return Err(DataError::Plan {
                message: format!("there are labels that are {what} ({place}), and classes are numbered from 0"),
                hint: "set problem_type: regression where labels are numbers; else give classes by their names".into(),
            });
        }
        // Lists of more than two entries, of which none is another than 0 and 1, name no classes.
        let flags = self.largest.is_none_or(|largest| largest < 2) && self.names.is_empty() && self.longest > 2;
        if let (ProblemType::MultiLabel, true, Some((one, first)), Some((other, second))) =
            (problem, flags, &self.places.list, &self.places.other_list)
        {
            return Err(DataError::Plan {
                message: format!("`label` is of {first} flags in {one}, and of {second} in {other}"),
                hint:
                    "all rows have as many, one for each class; or a list of the classes' names or numbers, each once"
                        .into(),
            });
        }
        let numbered = |count: u64| (0..count).map(|id| format!("LABEL_{id}")).collect();
        Ok(match problem {
            ProblemType::Regression => numbered(if self.lists { self.longest as u64 } else { 1 }),
            _ if !self.names.is_empty() => self.names.iter().cloned().collect(),
            ProblemType::MultiLabel if self.all_flags && self.longest > 2 => numbered(self.longest as u64),
            _ => numbered(self.largest.map_or(0, |largest| largest + 1).max(2)),
        })
    }
}

#[cfg(test)]
#[path = "classes_tests.rs"]
mod tests;
