//! The `mayfly` binary; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    api_server::main()
}
