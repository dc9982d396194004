//! `mayfly check-host`: what it prints, and that its numbers and exit code are those of what it prints.

use std::process::Command;

use mayfly_tests::binary;
use serde_json::Value;

#[test]
fn text_and_json_say_the_same() {
    let run = |arguments: &[&str]| {
        let output = Command::new(binary::mayfly()).arg("check-host").args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&[]);
    let (json_code, json) = run(&["--json"]);
    let findings: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(findings.len() > 15, "{json}");
    let count = |verdict: &str| findings.iter().filter(|finding| finding["verdict"] == verdict).count();
    let problems = count("problem");
    assert_eq!((code, json_code), (Some(i32::from(problems > 0)), code));
    let last =
        format!("{} ok, {} advice, {problems} problems, {} unknown", count("ok"), count("advice"), count("unknown"));
    assert_eq!(text.lines().last(), Some(last.as_str()));
    for finding in &findings {
        let item = format!(" {}: ", finding["item"].as_str().unwrap());
        assert!(
            text.contains(&item) && text.contains(finding["source"].as_str().unwrap()),
            "{item} is missing in\n{text}"
        );
    }
    // The tests themselves need it.
    assert!(findings.iter().any(|finding| finding["item"] == "kvm" && finding["verdict"] == "ok"), "{json}");
}
