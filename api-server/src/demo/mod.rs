use crate::cli::DemoOptions;
pub(crate) fn run(_o: &DemoOptions) -> u8 {
    1
}
