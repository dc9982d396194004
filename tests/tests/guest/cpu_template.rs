//! Custom CPU templates in a guest: by the API, and by both forms in a configuration file.
//!
//! What is changed is the processor's name. Some hosts (page-table-based KVM) show guests their own feature bits whatever is set, so
//! those are tested on the table that KVM gets, and in a Linux guest of the nested tier.

use guest::{Job, Mode, Report};
use mayfly_tests::{PATIENCE, VmmBuilder};
use serde_json::{Value, json};

use super::{configured, run};

/// Leaf 0x80000002 EAX: the first four letters of the name.
const LETTERS: &[u8; 4] = b"Mayf";

fn template() -> Value {
    let bitmap = format!("{:#034b}", u32::from_le_bytes(*LETTERS));
    json!({
        "kvm_capabilities": ["3", "!56"],
        "cpuid_modifiers": [{
            "leaf": "0x80000002", "subleaf": "0b0", "flags": 0, "modifiers": [{"register": "eax", "bitmap": bitmap}],
        }],
        "msr_modifiers": [{"addr": "0x1a0", "bitmap": "0b_x"}],
    })
}

#[track_caller]
fn first_letters(report: &Report) -> [u8; 4] {
    let line = report.with_key("cpuid").find(|line| line.get("cpuid") == Some("0x80000002"));
    line.expect("the leaf is there").number::<u32>("eax").expect("EAX").to_le_bytes()
}

#[test]
fn a_template_changes_what_the_guest_sees_until_it_is_taken_back() {
    let vmm = configured(&Job::new(Mode::Probe));
    vmm.put("/cpu-config", &template()).expect_204();
    assert_eq!(&first_letters(&run(&vmm)), LETTERS);

    let vmm = configured(&Job::new(Mode::Probe));
    vmm.put("/cpu-config", &template()).expect_204();
    vmm.patch("/machine-config", &json!({"cpu_template": "None"})).expect_204();
    assert_ne!(&first_letters(&run(&vmm)), LETTERS);
}

/// A monitor with this `cpu-config` in its configuration file.
#[track_caller]
fn from_file(builder: VmmBuilder, cpu_config: &Value) -> mayfly_tests::Vmm {
    let kernel = builder.file("guest.elf", guest::ELF);
    let config = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": Job::new(Mode::Probe).command_line()},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
        "drives": [],
        "cpu-config": cpu_config,
    });
    builder.config_file(&config).no_api().start()
}

#[test]
fn a_configuration_file_holds_a_template_or_names_its_file() {
    let inline = |builder| from_file(builder, &template());
    let named = |builder: VmmBuilder| {
        let path = builder.file("template.json", template().to_string().as_bytes());
        from_file(builder, &json!(path))
    };
    for vmm in [inline(VmmBuilder::new()), named(VmmBuilder::new())] {
        assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
        assert_eq!(&first_letters(&Report::parse(&vmm.console().text())), LETTERS);
    }
}

#[test]
fn a_wrong_template_in_a_configuration_file_is_named() {
    let wrong = json!({"msr_modifiers": [{"addr": "0jj0", "bitmap": "0b1"}]});
    let builder = VmmBuilder::new();
    let path = builder.file("template.json", wrong.to_string().as_bytes());
    let missing = builder.dir().join("missing.json");
    let number = "No supported number system prefix found in value [0jj0]";
    let vmm = from_file(builder, &json!(path));
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(vmm.log().contains("Configure CPU error: the CPU template file"), "{}", vmm.log());
    assert!(vmm.log().contains(number), "{}", vmm.log());
    let vmm = from_file(VmmBuilder::new(), &wrong);
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(vmm.log().contains(number), "{}", vmm.log());
    let vmm = from_file(VmmBuilder::new(), &json!(missing));
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(vmm.log().contains("No such file or directory"), "{}", vmm.log());
}
