use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::mmds::Document;

use crate::actor::Vmm;
use crate::blueprint::{Disk, Plan, SerialOutput};
use crate::config::{
    DriveBackend, FullConfig, HugePages, InstanceId, MachinePatch, ResourceId, SerialConfig, VsockConfig,
};
use crate::error::{Error, Subject};
use crate::exit::ExitReason;
use crate::lifecycle::Phase;
use crate::machine::{Origin, Saved};
use crate::memory::Record;
use crate::requests::{
    Answer, CreateSnapshot, LoadSnapshot, MemoryBackend, NetOverride, Overrides, SnapshotKind, SnapshotProgress,
    VsockOverride,
};
use crate::snapshot::{self, Extent, Progress, WorkingSet};
use crate::telemetry::{LATENCIES, microseconds};

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::LoadSnapshot, what)
}

fn failed(what: impl std::fmt::Display) -> Error {
    refuse(format!("Failed to restore from snapshot: {what}"))
}

impl Vmm {
    /// Takes the machine's state here and has it written, with its memory, where files may be made. Meanwhile nothing changes.
    pub(crate) fn create_snapshot(&mut self, ask: CreateSnapshot, answer: Answer<()>) {
        let asked = Instant::now();
        let CreateSnapshot { kind, snapshot_path, mem_file_path } = ask;
        if let Err(refusal) = self.check_whole(Subject::SaveSnapshot) {
            return answer(Err(refusal));
        }
        let handle = self.handle();
        let Some(machine) = &mut self.machine else { return answer(Err(Error::gone())) };
        let written = machine.unsaved().map(Option::<&_>::cloned);
        let written = written.map_err(|e| Error::host(Subject::SaveSnapshot, format!("Cannot get dirty bitmap: {e}")));
        let (state, written) = match (machine.save(), written) {
            (Ok(state), Ok(written)) => (state, written),
            (Err(refusal), _) | (_, Err(refusal)) => return answer(Err(refusal)),
        };
        let extent = match (kind, written) {
            (SnapshotKind::Full, _) => Extent::Full,
            (SnapshotKind::Diff, Some(written)) => Extent::Written(written),
            (SnapshotKind::Diff, None) => Extent::Touched,
        };
        let memory = machine.memory();
        let layout = memory.layout();
        let progress = Arc::new(Progress::new(layout.file_len()));
        let job = snapshot::Job {
            config: self.plan.config(),
            state,
            ram: memory.everything.clone(),
            extent,
            layout,
            anonymous: memory.anonymous_parts(),
            snapshot_path,
            mem_file_path,
            progress: progress.clone(),
        };
        machine.run_with_files(move || {
            let outcome = snapshot::save(job);
            handle.send(move |vmm| {
                let latency = match kind {
                    SnapshotKind::Full => &LATENCIES.vmm_full_create_snapshot,
                    SnapshotKind::Diff => &LATENCIES.vmm_diff_create_snapshot,
                };
                latency.set(microseconds(asked.elapsed()));
                vmm.saving = None;
                if let (Ok(()), Some(machine)) = (&outcome, &mut vmm.machine) {
                    machine.was_saved();
                }
                answer(outcome);
                vmm.serve_postponed();
            });
        });
        self.saving = Some(progress);
        self.postpone();
    }

    /// Refuses to save a machine of which a part is with another process. The text is the v1 contract's.
    pub(super) fn check_whole(&self, subject: Subject) -> Result<(), Error> {
        let devices = self.plan.served_elsewhere();
        match devices.is_empty() {
            true => Ok(()),
            false => {
                let what = format!("Devices without snapshot support are present: {}", devices.join(", "));
                Err(Error::invalid(subject, what))
            }
        }
    }

    /// How far the snapshot is that is being written, if one is.
    pub(crate) fn snapshot_progress(&self) -> Option<SnapshotProgress> {
        let (bytes_done, bytes_total) = self.saving.as_ref()?.look();
        Some(SnapshotProgress { bytes_done, bytes_total })
    }

    /// The snapshot that is being written need not be.
    pub(crate) fn cancel_snapshot(&self) -> Result<(), Error> {
        let saving = self.saving.as_ref();
        saving
            .map(|saving| saving.cancel())
            .ok_or_else(|| Error::invalid(Subject::None, "No snapshot is being written."))
    }

    /// Builds the machine that was saved. If that fails nothing is left of it, and everything is as it was before.
    pub(crate) fn load_snapshot(&mut self, ask: LoadSnapshot) -> Result<(), Error> {
        let asked = Instant::now();
        if !self.plan.is_pristine() {
            return Err(refuse("Loading a microVM snapshot not allowed after configuring boot-specific resources."));
        }
        let or_end = ask.or_end;
        self.restore(ask, asked).inspect_err(|refusal| {
            if or_end {
                self.exit().report(ExitReason::Lost(format!("the snapshot could not be loaded: {refusal}")));
            }
        })
    }

    fn restore(&mut self, ask: LoadSnapshot, asked: Instant) -> Result<(), Error> {
        log::debug!("event_start: build microvm from snapshot");
        let bytes = snapshot::read_file(&ask.snapshot_path).map_err(failed)?;
        let mut loaded = snapshot::load(&bytes, ask.force).map_err(failed)?;
        let state_crc = snapshot::container::checksum(&bytes);
        drop(bytes);
        override_config(&mut loaded.config, &ask.overrides, ask.track_dirty_pages)?;
        if loaded.config.machine.huge_pages() == HugePages::Hugetlbfs2M && matches!(ask.memory, MemoryBackend::File(_))
        {
            return Err(failed(
                "a memory file cannot be behind pages of hugetlbfs: use huge_pages None or Transparent, or a backend of type Uffd",
            ));
        }
        let config = std::mem::take(&mut loaded.config);
        let mut working_set = None;
        let mut recording = None;
        if let Some(path) = ask.working_set_path {
            let refuse = |e: &dyn std::fmt::Display| failed(format!("working_set_path {}: {e}", path.display()));
            if matches!(ask.memory, MemoryBackend::Handler(_)) {
                return Err(refuse(&"memory has to come from a file"));
            }
            working_set = WorkingSet::read(&path, state_crc, loaded.layout()).map_err(|e| refuse(&e))?;
            if working_set.is_none() {
                recording = Some(Recording { record: Arc::default(), path, state_crc });
            }
        }
        let loaded = match (&ask.memory, &recording) {
            (MemoryBackend::File(path), Some(recording)) => {
                loaded.with_record(path, &ask.snapshot_path, recording.record.clone())
            }
            (MemoryBackend::File(path), None) => loaded.with_file(path, &ask.snapshot_path),
            (MemoryBackend::Handler(path), _) => loaded.with_handler(path),
        };
        let (state, memory) = loaded.map_err(failed)?;
        let saved = Saved { state, memory, clock_realtime: ask.clock_realtime, working_set };
        let Overrides { serial, mmds, .. } = ask.overrides;
        self.revive(Revival { config, saved, id: ask.id, serial, mmds, resume: ask.resume, taken: Vec::new() }, asked)?;
        if let Some(recording) = recording {
            self.begin_recording(recording);
        }
        Ok(())
    }

    /// What the guest wants is noted from the beginning; from now on until it is paused, or for so long.
    fn begin_recording(&mut self, recording: Recording) {
        if let Err(error) = self.record_clock.reset(RECORDING_TIME, None) {
            log::warn!("The working set is recorded until the machine is paused: {error}");
        }
        self.recording = Some(recording);
    }

    /// The guest has got what it wanted first: that is written down, where files may be made.
    pub(in crate::actor) fn end_recording(&mut self) {
        let Some(Recording { record, path, state_crc }) = self.recording.take() else { return };
        let Some(machine) = &self.machine else { return };
        machine.run_with_files(move || {
            let set = WorkingSet::of(&record.end());
            let pages = set.page_count();
            match set.write(&path, state_crc) {
                Ok(()) => log::info!("The working set of {pages} pages was written to {}.", path.display()),
                Err(error) => log::warn!("The working set cannot be written to {}: {error}", path.display()),
            }
        });
    }

    /// Becomes the machine. If that fails everything is as it was before.
    pub(super) fn revive(&mut self, revival: Revival, asked: Instant) -> Result<(), Error> {
        let Revival { config, saved, id, serial, mmds, resume, taken } = revival;
        let plan = Plan::revived(config).map_err(failed)?;
        check_disks(&plan, &taken)?;
        let console = serial.map(SerialOutput::open).transpose().map_err(failed)?;
        let metadata = match mmds {
            Some(document) => Some(self.mmds().store().exchange(document).map_err(failed)?),
            None => None,
        };
        let mut before = std::mem::replace(&mut self.plan, plan);
        let other_console = console.is_some();
        self.plan.serial = console.unwrap_or_else(|| std::mem::take(&mut before.serial));
        if let Err(refusal) = self.set_up(Origin::Saved(&saved)) {
            if !other_console {
                before.serial = std::mem::take(&mut self.plan.serial);
            }
            self.plan = before;
            if let Some(metadata) = metadata {
                *self.mmds().store() = metadata;
            }
            return Err(failed(refusal.what()));
        }
        log::debug!("event_end: build microvm from snapshot");
        let machine = self.live_machine()?;
        if let Err(error) = machine.renew_identity() {
            // It must not run as somebody that it is not, and is not undone any more: the process is of no use.
            let why = format!("the machine got no identity of its own: {error}");
            self.exit().report(ExitReason::Lost(why.clone()));
            return Err(failed(why));
        }
        if let Some(id) = id {
            self.rename(id);
        }
        let machine = self.live_machine()?;
        machine.remind();
        machine.is_loaded();
        machine.bring_what_is_wanted();
        if resume {
            machine.resume();
            self.phase = Phase::Running;
        } else {
            self.phase = Phase::Paused;
        }
        self.begin_reports();
        LATENCIES.vmm_load_snapshot.set(microseconds(asked.elapsed()));
        Ok(())
    }
}

/// How long it is noted what a guest wants, if it is not paused before.
const RECORDING_TIME: Duration = Duration::from_secs(10);

/// A working set that is being recorded.
pub(in crate::actor) struct Recording {
    record: Arc<Record>,
    path: PathBuf,
    state_crc: u32,
}

/// A machine that was saved, and what is otherwise now.
pub(super) struct Revival {
    pub(super) config: FullConfig,
    pub(super) saved: Saved,
    pub(super) id: Option<InstanceId>,
    pub(super) serial: Option<SerialConfig>,
    pub(super) mmds: Option<Document>,
    pub(super) resume: bool,
    /// What the original writes to, if that goes on.
    pub(super) taken: Vec<Disk>,
}

/// Two machines that write to the same file system destroy it.
fn check_disks(plan: &Plan, taken: &[Disk]) -> Result<(), Error> {
    for drive in plan.drives().iter().filter(|drive| !drive.is_read_only()) {
        if drive.disk().is_ok_and(|disk| disk.is_some_and(|disk| taken.contains(&disk))) {
            let (id, path) = (&drive.config.id, drive.config.backend.path().display());
            return Err(failed(format!(
                "drive {id}: {path} is what the original writes to: give the clone a copy (`drives`)"
            )));
        }
    }
    Ok(())
}

/// What the caller wants to be otherwise than it was.
pub(super) fn override_config(
    config: &mut FullConfig,
    overrides: &Overrides,
    track_dirty_pages: bool,
) -> Result<(), Error> {
    let Overrides { drives, pmems, nets, vsock: socket, serial: _, mmds, huge_pages } = overrides;
    for (id, path) in drives {
        let drive = config.drives.iter_mut().find(|drive| drive.id == *id);
        drive.ok_or_else(|| unknown("Drive", id))?.backend = DriveBackend::File(path.clone());
    }
    for (id, path) in pmems {
        let pmem = config.pmems.iter_mut().find(|pmem| pmem.id == *id);
        pmem.ok_or_else(|| unknown("Pmem Device", id))?.path_on_host.clone_from(path);
    }
    for NetOverride { id, host_dev_name, guest_mac } in nets {
        let net = config.nets.iter_mut().find(|net| net.id == *id).ok_or_else(|| unknown("Network Device", id))?;
        if let Some(tap) = host_dev_name {
            net.host_dev_name.clone_from(tap);
        }
        net.guest_mac = guest_mac.or(net.guest_mac);
    }
    let VsockOverride { guest_cid, uds_path } = socket;
    if guest_cid.is_some() || uds_path.is_some() {
        let vsock = config.vsock.as_mut();
        let vsock = vsock.ok_or_else(|| failed("Unknown Vsock Device: the snapshot has none"))?;
        let path = uds_path.as_deref().unwrap_or(vsock.uds_path()).to_owned();
        *vsock = VsockConfig::new(guest_cid.unwrap_or(vsock.guest_cid()), path).map_err(failed)?;
    }
    if mmds.is_some() && config.mmds.is_none() {
        return Err(failed("Unknown metadata service: the snapshot has none"));
    }
    let patch =
        MachinePatch { track_dirty_pages: Some(track_dirty_pages), huge_pages: *huge_pages, ..MachinePatch::default() };
    config.machine = config.machine.patched(&patch).map_err(failed)?;
    Ok(())
}

fn unknown(kind: &str, id: &ResourceId) -> Error {
    failed(format!("Unknown {kind}: the snapshot has no {id}"))
}
