//! A public Firecracker SDK (`fctools` on crates.io) drives our binary as it drives the original: same calls, same expectations.
//!
//! The binary is invoked as `firecracker`, from a copy, as a user who swaps it in would do.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::{VmApi, VmApiError};
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BootSource, CreateSnapshot, Drive, DriveCacheType, DriveIoEngine, MachineConfiguration, NetworkInterface,
    SnapshotType, UpdateDrive,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownError, VmShutdownMethod};
use fctools::vm::snapshot::PrepareVmFromSnapshotOptions;
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::process::{VmmProcessError, VmmProcessState};
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, Resource, ResourceType};
use guest::{Job, Mode};
use mayfly_tests::{Disk, PATIENCE, Tap, binary, tap};

type System = ResourceSystem<DirectProcessSpawner, TokioRuntime>;
type Sdk = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

/// A directory with a copy of our binary under the name the SDK expects.
struct Installation {
    dir: tempfile::TempDir,
}

impl Installation {
    fn new() -> Self {
        binary::require_kvm();
        let dir = tempfile::tempdir().unwrap();
        binary::copy(&binary::mayfly(), &dir.path().join("firecracker"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    async fn prepare(&self, system: System, data: VmConfigurationData, init_method: InitMethod) -> Sdk {
        let arguments = VmmArguments::new(VmmApiSocket::Enabled(self.path("api.sock")));
        let executor = UnrestrictedVmmExecutor::new(arguments).id(VmmId::new("sdk-vm").unwrap());
        let installation =
            VmmInstallation::new(self.path("firecracker"), self.path("jailer"), self.path("snapshot-editor"));
        let configuration = VmConfiguration::New { init_method, data };
        Vm::prepare(executor, system, installation, configuration).await.unwrap()
    }
}

fn system() -> System {
    ResourceSystem::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared)
}

fn existing(system: &mut System, path: &Path) -> Resource {
    system.create_resource(path, ResourceType::Moved(MovedResourceType::Renamed)).unwrap()
}

fn configuration(kernel: Resource, mode: Mode) -> VmConfigurationData {
    VmConfigurationData {
        boot_source: BootSource { kernel_image: kernel, boot_args: Some(Job::new(mode).command_line()), initrd: None },
        drives: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 64,
            smt: Some(false),
            track_dirty_pages: Some(false),
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: None,
        vsock_device: None,
        logger_system: None,
        metrics_system: None,
        mmds_configuration: None,
        entropy_device: None,
    }
}

async fn kill(vm: &mut Sdk) {
    let action = VmShutdownAction { method: VmShutdownMethod::Kill, timeout: Some(PATIENCE), graceful: false };
    match vm.shutdown([action]).await {
        Ok(_) => {}
        // The process had ended by that signal before the SDK came to wait for it.
        Err(VmShutdownError::WaitForExitError(VmmProcessError::IncorrectState(VmmProcessState::Crashed(status))))
            if status.signal() == Some(libc::SIGKILL) => {}
        Err(error) => panic!("{error:?}"),
    }
    vm.cleanup().await.unwrap();
}

#[tokio::test]
async fn configure_boot_pause_resume_and_update() {
    let place = Installation::new();
    tap::private_network();
    let tap = Tap::create("mfsdk").unwrap();
    tap.up().unwrap();
    let mut system = system();
    let kernel = existing(&mut system, &place.file("kernel", guest::ELF));
    let disk = Disk::sparse(place.dir.path(), "disk", 1 << 20).unwrap();
    let other = Disk::sparse(place.dir.path(), "other", 1 << 21).unwrap();
    let mut data = configuration(kernel, Mode::SpinQuiet);
    data.drives.push(Drive {
        drive_id: "rootfs".to_owned(),
        is_root_device: true,
        cache_type: Some(DriveCacheType::Writeback),
        partuuid: None,
        is_read_only: Some(false),
        block: Some(existing(&mut system, disk.path())),
        rate_limiter: None,
        io_engine: Some(DriveIoEngine::Sync),
        socket: None,
    });
    data.network_interfaces.push(NetworkInterface {
        iface_id: "eth0".to_owned(),
        host_dev_name: tap.name().to_owned(),
        guest_mac: Some("06:00:ac:10:00:02".to_owned()),
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    });
    let second = existing(&mut system, other.path());
    let mut vm = place.prepare(system, data, InitMethod::ViaApiCalls).await;
    vm.start(PATIENCE).await.unwrap();

    let info = vm.get_info().await.unwrap();
    assert_eq!((info.id.as_str(), info.is_paused, info.app_name.as_str()), ("sdk-vm", false, "Firecracker"));
    assert_eq!(vm.get_firecracker_version().await.unwrap(), info.vmm_version);
    let machine = vm.get_machine_configuration().await.unwrap();
    assert_eq!((machine.vcpu_count, machine.mem_size_mib), (1, 64));

    vm.pause().await.unwrap();
    assert!(vm.get_info().await.unwrap().is_paused);
    vm.resume().await.unwrap();
    assert!(!vm.get_info().await.unwrap().is_paused);

    let update = UpdateDrive { drive_id: "rootfs".to_owned(), block: Some(second), rate_limiter: None };
    vm.update_drive(update).await.unwrap();
    let missing = UpdateDrive { drive_id: "nosuch".to_owned(), block: None, rate_limiter: None };
    match vm.update_drive(missing).await {
        Err(VmApiError::ReceivedErrorResponse { status_code, fault_message }) => {
            assert_eq!(status_code.as_u16(), 400);
            assert!(fault_message.contains("nosuch"), "{fault_message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vm.get_state(), VmState::Running);
    kill(&mut vm).await;
}

/// Saved, and loaded by another process; then what changed is saved on top, and loaded again.
#[tokio::test]
async fn a_snapshot_is_made_and_gone_on_with() {
    let place = Installation::new();
    let mut system = system();
    let kernel = existing(&mut system, &place.file("kernel", guest::ELF));
    let disk = Disk::sparse(place.dir.path(), "disk", 1 << 20).unwrap();
    let mut data = configuration(kernel, Mode::SpinQuiet);
    data.machine_configuration.track_dirty_pages = Some(true);
    data.drives.push(Drive {
        drive_id: "data".to_owned(),
        is_root_device: false,
        cache_type: None,
        partuuid: None,
        is_read_only: Some(false),
        block: Some(existing(&mut system, disk.path())),
        rate_limiter: None,
        io_engine: Some(DriveIoEngine::Async),
        socket: None,
    });
    let mut vm = place.prepare(system, data, InitMethod::ViaApiCalls).await;
    vm.start(PATIENCE).await.unwrap();
    for (round, kind) in [(1, SnapshotType::Full), (2, SnapshotType::Diff)] {
        vm.pause().await.unwrap();
        let mut produced = |name: &str| {
            // What changed lies over what was saved before.
            let path = place.path(&format!("{name}-{}", if name == "state" { round } else { 1 }));
            vm.get_resource_system_mut().create_resource(path, ResourceType::Produced).unwrap()
        };
        let (snapshot, mem_file) = (produced("state"), produced("memory"));
        let create = CreateSnapshot { snapshot_type: Some(kind), snapshot, mem_file };
        let saved = vm.create_snapshot(create).await.unwrap();
        let arguments = VmmArguments::new(VmmApiSocket::Enabled(place.path(&format!("api-{round}.sock"))));
        let options = PrepareVmFromSnapshotOptions {
            executor: UnrestrictedVmmExecutor::new(arguments).id(VmmId::new("sdk-clone").unwrap()),
            process_spawner: DirectProcessSpawner,
            runtime: TokioRuntime,
            moved_resource_type: MovedResourceType::Renamed,
            ownership_model: VmmOwnershipModel::Shared,
            enable_diff_snapshots: Some(true),
            resume_vm: Some(true),
        };
        let mut next = saved.prepare_vm(&mut vm, options).await.unwrap();
        next.start(PATIENCE).await.unwrap();
        let info = next.get_info().await.unwrap();
        assert_eq!((info.id.as_str(), info.is_paused), ("sdk-clone", false));
        assert_eq!(next.get_machine_configuration().await.unwrap().mem_size_mib, 64);
        let action = VmShutdownAction { method: VmShutdownMethod::Kill, timeout: Some(PATIENCE), graceful: false };
        let _ = vm.shutdown([action]).await;
        vm = next;
    }
    kill(&mut vm).await;
}

#[tokio::test]
async fn boot_from_a_configuration_file() {
    let place = Installation::new();
    let mut system = system();
    let kernel = existing(&mut system, &place.file("kernel", guest::ELF));
    let data = configuration(kernel, Mode::SpinQuiet);
    let mut vm = place.prepare(system, data, InitMethod::ViaJsonConfiguration(place.path("vm.json"))).await;
    vm.start(PATIENCE).await.unwrap();
    assert!(!vm.get_info().await.unwrap().is_paused);
    kill(&mut vm).await;
}

#[tokio::test]
async fn a_guest_that_reboots_is_seen_to_exit() {
    let place = Installation::new();
    let mut system = system();
    let kernel = existing(&mut system, &place.file("kernel", guest::ELF));
    let mut vm = place.prepare(system, configuration(kernel, Mode::Hello), InitMethod::ViaApiCalls).await;
    vm.start(PATIENCE).await.unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while vm.get_state() == VmState::Running {
        assert!(std::time::Instant::now() < deadline, "the machine does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(vm.get_state(), VmState::Exited);
    vm.cleanup().await.unwrap();
}
