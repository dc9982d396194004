//! Random requests against a model of which pages may be given back: exactly those are gone.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::rig::*;
use crate::virtio::balloon::BalloonSpec;
use crate::virtio::device::VirtioDevice;

const HINT: usize = 2;
const REPORT: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Inflate(Vec<u32>),
    Deflate(Vec<u32>),
    Report(Vec<(u32, u32)>),
    Hint(Vec<(u32, u32)>),
    /// The driver sends the current command, or one that is this much off.
    Command(u32),
    Stop,
    HostStart(bool),
    HostStop,
    /// The host changes something while requests wait.
    Pause,
}

fn page() -> impl Strategy<Value = u32> {
    prop_oneof![8 => FIRST..END, 1 => END..END + 16, 1 => Just(u32::MAX), 1 => 0x500..0x508u32]
}

fn ranges() -> impl Strategy<Value = Vec<(u32, u32)>> {
    prop::collection::vec((FIRST..END).prop_flat_map(|first| (Just(first), 1..=(END - first).min(1500))), 1..6)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::collection::vec(page(), 0..3000).prop_map(Op::Inflate),
        1 => prop::collection::vec(page(), 0..50).prop_map(Op::Deflate),
        2 => ranges().prop_map(Op::Report),
        4 => ranges().prop_map(Op::Hint),
        2 => prop_oneof![3 => Just(0), 1 => 1..3u32].prop_map(Op::Command),
        1 => Just(Op::Stop),
        2 => any::<bool>().prop_map(Op::HostStart),
        1 => Just(Op::HostStop),
        1 => Just(Op::Pause),
    ]
}

/// What the pages and commands should be.
#[derive(Default)]
struct Model {
    gone: BTreeSet<u32>,
    host: u32,
    last: u32,
    acknowledge: bool,
    run: Option<u32>,
}

impl Model {
    fn take(&mut self, ranges: &[(u32, u32)]) {
        self.gone.extend(ranges.iter().flat_map(|(first, count)| *first..first + count));
    }
}

fn run(ops: &[Op], short_visits: bool) {
    let mut rig = Rig::new(BalloonSpec { hinting: true, reporting: true, ..BalloonSpec::default() });
    if short_visits {
        rig.balloon.hurry();
    }
    let mut model = Model { last: 1, ..Model::default() };
    for op in ops {
        match op {
            Op::Inflate(pages) => {
                rig.send_pages(INFLATE, pages);
                model.gone.extend(pages.iter().filter(|page| **page < END));
            }
            Op::Deflate(pages) => rig.send_pages(DEFLATE, pages),
            Op::Report(ranges) => {
                rig.send_ranges(REPORT, ranges);
                model.take(ranges);
            }
            Op::Hint(ranges) => {
                rig.send_ranges(HINT, ranges);
                if model.host > 1 && model.run == Some(model.host) {
                    model.take(ranges);
                }
            }
            Op::Command(off) => {
                let command = model.last.max(2) + off;
                rig.send_command(HINT, command);
                model.run = Some(command);
            }
            Op::Stop => {
                rig.send_command(HINT, 0);
                if model.host > 1 && model.run.take() == Some(model.host) && model.acknowledge {
                    model.host = 1;
                }
            }
            Op::HostStart(acknowledge) => {
                rig.balloon.start_hinting(*acknowledge).unwrap();
                model.last += 1;
                (model.host, model.acknowledge) = (model.last, *acknowledge);
            }
            Op::HostStop => {
                rig.balloon.stop_hinting().unwrap();
                model.host = 1;
            }
            Op::Pause => rig.balloon.quiesce(&mut rig.rings).unwrap(),
        }
        assert_eq!(rig.config()[2], model.host, "{op:?}");
    }
    assert_eq!(rig.gone(), model.gone.into_iter().collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_what_was_named_is_gone(ops in prop::collection::vec(op(), 1..24), short_visits: bool) {
        run(&ops, short_visits);
    }
}
