//! Clones: other processes, which wait for that, become machines like one that runs here or was saved.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::snapshots::{Revival, override_config};
use crate::actor::Vmm;
use crate::blueprint::Disk;
use crate::config::{FullConfig, HugePages};
use crate::error::{Error, Subject};
use crate::exit::ExitReason;
use crate::lifecycle::Phase;
use crate::machine::{Saved, State};
use crate::memory::{Layout, MemoryFile, NotShared, SavedMemory, Source};
use crate::requests::{Answer, Child, CloneSnapshot, Cloned, Clones, HowToClone, MAX_CHILDREN, Overrides};
use crate::snapshot::handover::{self, Taken};
use crate::snapshot::{self, Became, CloneOrder, Exposed, Exposure, Image, Letters, Progress};
use crate::telemetry::microseconds;
use crate::threads::{self, Role};

/// How long all clones of a request may take together.
const TIME: Duration = Duration::from_secs(10);
const NOT_CLONABLE: &str = "this process was not started to make clones: start it with --clonable, or save a snapshot and have a process without a machine clone that";
/// Of the thread that hands machines over where there is none that opens files.
const STACK_LEN: usize = 256 << 10;

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::Clone, what)
}

/// What a clone is to be, before it is known what memory it gets.
struct Order {
    socket: std::path::PathBuf,
    config: FullConfig,
    order: CloneOrder,
}

/// Judges the request, and says what each clone is to be.
fn orders(config: &FullConfig, how: HowToClone, taken: &[Disk]) -> Result<Vec<Order>, Error> {
    let HowToClone { children, resume, track_dirty_pages, clock_realtime } = how;
    if children.is_empty() || children.len() > MAX_CHILDREN {
        return Err(refuse(format!("children: there are {}, and can be 1 to {MAX_CHILDREN}", children.len())));
    }
    if config.machine.huge_pages() == HugePages::Hugetlbfs2M {
        return Err(refuse("memory of huge pages (2M) cannot be shared: use huge_pages None or Transparent"));
    }
    for (at, child) in children.iter().enumerate() {
        if children.iter().take(at).any(|other| other.socket == child.socket) {
            return Err(refuse(format!("children[{at}]: socket {} is another one's, too", child.socket.display())));
        }
    }
    let order = |(at, child): (usize, Child)| {
        let mut config = config.clone();
        override_config(&mut config, &child.overrides, track_dirty_pages)
            .map_err(|e| refuse(format!("children[{at}]: {}", e.what())))?;
        let Overrides { serial, mmds, .. } = child.overrides;
        let order = CloneOrder {
            id: child.id,
            resume,
            clock_realtime,
            track_dirty_pages,
            serial,
            mmds,
            runs: Vec::new(),
            taken: taken.to_vec(),
        };
        Ok(Order { socket: child.socket, config, order })
    };
    children.into_iter().enumerate().map(order).collect()
}

/// Hands the machine over to all of them: first each gets what it needs, then answers are waited for, so that they work side by side.
fn hand_over(orders: Vec<Order>, image: &Image, state: &State, progress: &Progress) -> Vec<Cloned> {
    let until = Instant::now() + TIME;
    let letters = Letters::new(&image.layout, state).map_err(|e| format!("its state cannot be written: {e}"));
    let runs = image.over.as_ref().map_or(&[][..], |(_, runs)| runs);
    let give = |order: &mut Order| -> Result<UnixStream, String> {
        progress.advance(0).map_err(|e| e.to_string())?;
        order.order.runs = runs.to_vec();
        let letter = letters.as_ref().map_err(Clone::clone)?.to(&order.config, &order.order);
        let letter = letter.map_err(|e| format!("its state cannot be written: {e}"))?;
        handover::give(&order.socket, image, &letter, until)
            .map_err(|e| format!("the process that should wait there cannot be reached: {e}"))
    };
    let given: Vec<_> = orders
        .into_iter()
        .map(|mut order| {
            let asked = Instant::now();
            (give(&mut order), order.socket, asked)
        })
        .collect();
    let hear = |(given, socket, asked): (Result<UnixStream, String>, _, Instant)| {
        let heard = given.and_then(|stream| {
            progress.advance(0).map_err(|e| e.to_string())?;
            match handover::hear(stream, until) {
                Ok(Taken::In(became)) => {
                    log::debug!("{became:?}, {} us until it was heard of", asked.elapsed().as_micros());
                    Ok(became)
                }
                Ok(Taken::Refused(why)) => Err(why),
                Err(error) => Err(format!("no answer: {error}")),
            }
        });
        Cloned { socket, outcome: heard }
    };
    given.into_iter().map(hear).collect()
}

impl Vmm {
    /// Makes clones of the machine. If it runs it stands still until its memory can be shared.
    pub(crate) fn clone_machine(&mut self, how: HowToClone, answer: Answer<Clones>) {
        if !self.settings().clonable {
            return answer(Err(refuse(NOT_CLONABLE)));
        }
        if let Err(refusal) = self.check_whole(Subject::Clone) {
            return answer(Err(refusal));
        }
        let writable = self.plan.drives().iter().filter(|drive| !drive.is_read_only());
        let taken: Vec<Disk> = writable.filter_map(|drive| drive.disk().ok().flatten()).collect();
        let orders = match orders(&self.plan.config(), how, &taken) {
            Ok(orders) => orders,
            Err(refusal) => return answer(Err(refusal)),
        };
        self.fill_orders(orders, answer);
    }

    /// Does so when no others are being made: the thread that is needed waits for those, and the machine must not stand still as long as that.
    fn fill_orders(&mut self, orders: Vec<Order>, answer: Answer<Clones>) {
        if self.cloning.is_some() {
            return self.after_clones.push(Box::new(move |vmm| vmm.fill_orders(orders, answer)));
        }
        let handle = self.handle();
        let Some(machine) = &self.machine else { return answer(Err(Error::gone())) };
        if matches!(machine.memory().source, Source::Handler | Source::Anonymous) {
            return answer(Err(refuse("memory that a page-fault handler brings cannot be shared")));
        }
        if self.phase == Phase::Paused {
            return self.expose(orders, None, answer);
        }
        let asked = Instant::now();
        machine.pause(move || handle.send(move |vmm| vmm.expose(orders, Some(asked), answer)));
        self.postpone();
    }

    /// The machine stands still, since just now or for longer: makes its memory one that can be shared, where files may be made.
    fn expose(&mut self, orders: Vec<Order>, paused: Option<Instant>, answer: Answer<Clones>) {
        let handle = self.handle();
        let Some(machine) = &mut self.machine else { return answer(Err(Error::gone())) };
        // Not needed where all of memory is given away; the log is looked at when its pages are gone from KVM's tables, which saves protecting
        // each of them against writing.
        let written = match machine.memory().source {
            Source::Memfd(_) => Ok(None),
            _ => machine.over_base().map(Option::<&_>::cloned).map_err(refuse),
        };
        let (state, written) = match (machine.save(), written) {
            (Ok(state), Ok(written)) => (state, written),
            (Err(refusal), _) | (_, Err(refusal)) => {
                self.go_on(paused);
                return answer(Err(refuse(refusal.what())));
            }
        };
        let memory = machine.memory();
        let layout = memory.layout();
        let progress = Arc::new(Progress::new(layout.file_len()));
        let exposure = Exposure {
            ram: memory.everything.clone(),
            layout,
            source: memory.source.clone(),
            written,
            anonymous: memory.anonymous_parts(),
            hotplug: memory.hotplug.as_ref().map(|region| region.shape.start),
            progress: progress.clone(),
        };
        self.saving = Some(progress.clone());
        machine.run_with_files(move || {
            let exposed = exposure.make();
            handle.send(move |vmm| {
                vmm.saving = None;
                match exposed {
                    Ok(exposed) => vmm.share(orders, state, exposed, progress, paused, answer),
                    Err(NotShared::Lost(error)) => {
                        answer(Err(vmm.lose(format!("clones were to be made, and {}", NotShared::Lost(error)))))
                    }
                    Err(error) => {
                        vmm.go_on(paused);
                        answer(Err(refuse(format!("memory cannot be shared: {error}"))));
                    }
                }
            });
        });
        if paused.is_none() {
            self.postpone();
        }
    }

    /// Goes on, and hands over what was made.
    fn share(
        &mut self,
        orders: Vec<Order>,
        state: State,
        exposed: Exposed,
        progress: Arc<Progress>,
        paused: Option<Instant>,
        answer: Answer<Clones>,
    ) {
        let Exposed { image, source, copied, aside } = exposed;
        if let (Some(machine), Some(source)) = (&mut self.machine, source)
            && let Err(error) = machine.has_another_base(source)
        {
            let why = format!("clones were made, and what the machine has written is not known any more: {error}");
            return answer(Err(self.lose(why)));
        }
        // Before others have their turn.
        self.cloning = Some(progress.clone());
        self.go_on(paused);
        let pause_us = paused.map_or(0, |asked| microseconds(asked.elapsed()));
        let Some(machine) = &self.machine else { return answer(Err(Error::gone())) };
        let handle = self.handle();
        machine.run_with_files(move || {
            let children = hand_over(orders, &image, &state, &progress);
            let memory_bytes = image.layout.file_len();
            handle.send(move |_| answer(Ok(Clones { pause_us, memory_bytes, copied_bytes: copied, children })));
            // Only now: it takes longer than everything else.
            drop(aside);
            handle.send(|vmm| {
                vmm.cloning = None;
                vmm.serve_after_clones();
            });
        });
    }

    /// The machine cannot go on.
    fn lose(&self, why: String) -> Error {
        self.exit().report(ExitReason::Lost(why.clone()));
        refuse(why)
    }

    /// Makes the clones that had to wait for others, unless something else has to be waited for by now.
    fn serve_after_clones(&mut self) {
        for job in std::mem::take(&mut self.after_clones) {
            self.do_or_postpone(job);
        }
    }

    /// Lets a machine run that stood still for its clones only, and serves what had to wait.
    fn go_on(&mut self, paused: Option<Instant>) {
        if let (Some(machine), Some(_)) = (&self.machine, paused) {
            machine.resume();
        }
        self.serve_postponed();
    }

    /// Makes clones of a saved machine.
    pub(crate) fn clone_snapshot(&mut self, ask: CloneSnapshot, answer: Answer<Clones>) {
        // A thread behind its fence connects to nobody if it was not meant to.
        if self.machine.is_some() && !self.settings().clonable {
            return answer(Err(refuse(NOT_CLONABLE)));
        }
        let work = move || -> Result<Clones, Error> {
            let CloneSnapshot { snapshot_path, mem_file_path, force, how } = ask;
            let bytes = snapshot::read_file(&snapshot_path).map_err(refuse)?;
            let loaded = snapshot::load(&bytes, force).map_err(refuse)?;
            let orders = orders(&loaded.config, how, &[])?;
            let file = loaded.memory_file(&mem_file_path, &snapshot_path).map_err(refuse)?;
            let layout = loaded.layout().clone();
            let image = Image::of_file(&file, layout).map_err(|e| refuse(format!("the memory file: {e}")))?;
            let memory_bytes = image.layout.file_len();
            let children = hand_over(orders, &image, &loaded.state, &Progress::new(0));
            Ok(Clones { pause_us: 0, memory_bytes, copied_bytes: 0, children })
        };
        let handle = self.handle();
        if let Some(machine) = &self.machine {
            return machine.run_with_files(move || {
                let outcome = work();
                handle.send(move |_| answer(outcome));
            });
        }
        // Without a machine there is no thread for files, and no fence either: until it is done, nobody gets a machine here.
        let spawned = threads::spawn(Role::Files, STACK_LEN, move || {
            let outcome = work();
            handle.send(move |vmm| {
                answer(outcome);
                vmm.serve_postponed();
            });
        });
        match spawned {
            Ok(_thread) => self.postpone(),
            // The answer went with the thread that is not there: whoever waits for it hears that the VMM is gone.
            Err(error) => log::error!("There is no thread to make clones: {error}"),
        }
    }

    /// Becomes the machine that somebody hands over, if this process has none yet, and says so. What is wrong is told to the other side.
    pub(in crate::actor) fn take_over(&mut self, stream: UnixStream) {
        let asked = Instant::now();
        let taken = match self.be_clone(&stream, asked) {
            Ok(private_bytes) => Taken::In(Became { load_us: microseconds(asked.elapsed()), private_bytes }),
            Err(why) => {
                log::warn!("A machine was offered, and not taken: {why}");
                Taken::Refused(why)
            }
        };
        handover::answer(stream, &taken);
    }

    fn be_clone(&mut self, stream: &UnixStream, asked: Instant) -> Result<u64, String> {
        let gift = handover::take(stream).map_err(|e| e.to_string())?;
        if self.phase != Phase::Configuring || !self.plan.is_pristine() || self.postponed() {
            return Err("it has been configured, has a machine already, or is making clones itself".to_owned());
        }
        let (mut loaded, order) = snapshot::load_clone(&gift.bytes).map_err(|e| e.to_string())?;
        let mut config = std::mem::take(&mut loaded.config);
        override_config(&mut config, &Overrides::default(), order.track_dirty_pages)
            .map_err(|e| e.what().to_string())?;
        let layout: Layout = loaded.layout().clone();
        let memory = MemoryFile::new(gift.base, layout, &[]).and_then(|base| match gift.over {
            Some(over) => base.with_overlay(over, order.runs),
            None => Ok(base),
        });
        let memory = SavedMemory::File(memory.map_err(|e| e.to_string())?);
        let saved = Saved { state: loaded.state, memory, clock_realtime: order.clock_realtime, working_set: None };
        let CloneOrder { id, serial, mmds, resume, taken, .. } = order;
        let revival = Revival { config, saved, id, serial, mmds, resume, taken };
        self.revive(revival, asked).map_err(|e| e.what().to_string())?;
        Ok(self.machine.as_ref().map_or(0, |machine| machine.private_len()))
    }
}
