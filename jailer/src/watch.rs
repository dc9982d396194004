//! A process that stays behind: it waits for the program's end and removes the jail.
//!
//! It is made before anything else, so it is outside of every namespace and control group of the jail, and has its paths.

use std::fs::File;
use std::io::{Read, Write};

use crate::clean;
use crate::error::{Doing, Error};
use crate::plan::Plan;
use crate::sys::beneath::Dir;
use crate::sys::process;

/// Our end of the way to it. Dropped, it has nothing to wait for and ends.
#[derive(Debug)]
pub(crate) struct Watcher {
    tell: File,
    heard: File,
}

impl Watcher {
    /// Starts it.
    pub(crate) fn start(plan: &Plan) -> Result<Self, Error> {
        let no_pipe = || "Cannot make a pipe".to_owned();
        let (news, tell) = process::pipe().doing(no_pipe)?;
        let (heard, hear) = process::pipe().doing(no_pipe)?;
        match process::fork().doing(|| "Cannot start the process that cleans up".to_owned())? {
            Some(_) => Ok(Self { tell, heard }),
            None => {
                drop((tell, heard));
                live(plan, news, hear);
                process::end(0)
            }
        }
    }

    /// Names the process to wait for, which must not end before this returns.
    pub(crate) fn watch(mut self, pid: i32) -> Result<(), Error> {
        let mut byte = [0];
        let outcome = self.tell.write_all(&pid.to_ne_bytes()).and_then(|()| self.heard.read_exact(&mut byte));
        outcome.doing(|| "The process that cleans up does not answer".to_owned())
    }
}

fn live(plan: &Plan, mut news: File, mut hear: File) {
    // Neither the terminal's signals nor its end are for us, and nobody waits for our output.
    let _ = process::own_session();
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = process::standard_streams(&null);
    }
    let mut pid = [0; 4];
    if news.read_exact(&mut pid).is_err() {
        // It came to nothing, and whoever tried has removed what there was.
        return;
    }
    let Ok(ended) = process::descriptor(i32::from_ne_bytes(pid)) else { return };
    let Ok(base) = Dir::open(&plan.layout.base) else { return };
    let _ = hear.write_all(b"+");
    drop((news, hear));
    process::wait_for(&ended);
    // There is nobody to tell.
    let _ = clean::remove(&base, &plan.layout, &plan.cgroups);
}
