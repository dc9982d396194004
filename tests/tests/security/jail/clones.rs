//! A machine in a jail is handed over to a process in another jail, of another user.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use guest::{Job, Mode};
use mayfly_tests::PATIENCE;
use serde_json::json;

use super::*;

/// With all fences: `/confinement` says so of both, and neither sees the other's files.
#[test]
fn clones_live_in_jails_of_their_own() {
    let (parent, child) = (Place::new("parent"), Place::new("child"));
    let kernel = kernel(&parent);
    let meeting = tempfile::tempdir().unwrap();
    // Not when it is made: there the umask has a say.
    std::fs::set_permissions(meeting.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
    std::os::unix::fs::chown(meeting.path(), None, Some(GID)).unwrap();
    let bind = format!("{}:/meet", meeting.path().display());
    let start = |place: &Place, uid: u32, more: &[&str], arguments: &[&str]| {
        let mut command = place.command_as(uid, &["--bind", &bind]);
        command.args(more).args(["--", "--api-sock", "/run/api.sock"]).args(arguments);
        let jailed = spawn(&mut command);
        place.wait_for_api(&jailed);
        jailed
    };
    let bind_kernel = format!("{}:/kernel:ro", kernel.display());
    let running = start(&parent, UID, &["--bind", &bind_kernel], &["--clonable"]);
    let line = Job::new(Mode::Life { after: 5 }).command_line();
    parent.put("/boot-source", &json!({"kernel_image_path": "/kernel", "boot_args": line}));
    parent.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64}));
    parent.put("/actions", &json!({"action_type": "InstanceStart"}));
    let wait_for = |jailed: &Jailed, text: &str| {
        let deadline = Instant::now() + PATIENCE;
        while !jailed.stdout.text().contains(text) {
            assert!(Instant::now() < deadline, "{}", jailed.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    wait_for(&running, "tick=2 ");
    let mut waiting = start(&child, UID + 1, &[], &["--clone-sock", "/meet/child"]);
    let body = json!({"children": [{"socket": "/meet/child", "id": "the-child"}]});
    let answer = parent.client().request("POST", "/clones", Some(&body.to_string())).unwrap().expect_200();
    assert!(answer["children"][0]["load_us"].is_u64(), "{answer}\n{}", waiting.said());
    for (place, id) in [(&parent, parent.id.as_str()), (&child, "the-child")] {
        let about = place.try_get("/").unwrap();
        assert_eq!((&about["state"], &about["id"]), (&"Running".into(), &id.into()));
        let report = place.try_get("/confinement").unwrap();
        assert!(report["threads"].as_array().unwrap().iter().all(|thread| thread["seccomp"] == "filter"), "{report}");
        assert_eq!(report["capabilities"]["effective"], "0000000000000000", "{report}");
    }
    assert!(!meeting.path().join("child").exists(), "whoever is a clone waits no more");
    wait_for(&waiting, "restored=");
    assert_eq!(waiting.wait(), 0, "{}", waiting.said());
    assert!(running.stdout.text().contains("tick=") && !running.stdout.text().contains("restored="));
}
