//! A wall clock that a test sets.

use std::path::PathBuf;
use std::process::Command;

use crate::{Job, Scene};

/// The wall clock of some of a scene's processes.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    jump: PathBuf,
}

impl Clock {
    /// One that goes right.
    ///
    /// # Panics
    /// Without a C compiler.
    pub fn of(scene: &Scene) -> Clock {
        let source = scene.write("clock_jump.c", include_str!("clock_jump.c"));
        let library = scene.path("clock_jump.so");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
        assert!(compiled.is_ok_and(|status| status.success()), "a C compiler is needed");
        Clock { library, jump: scene.write("jump", "0") }
    }

    /// The job, and all that it starts, with this clock.
    pub fn seen_by<'a>(&self, job: Job<'a>) -> Job<'a> {
        job.adjust(|command| {
            command.env("LD_PRELOAD", &self.library).env("CLOCK_JUMP", &self.jump);
        })
    }

    /// Sets it so many seconds ahead of the machine's.
    pub fn jump(&self, seconds: i64) {
        std::fs::write(&self.jump, seconds.to_string()).expect("the scene can be written");
    }
}
