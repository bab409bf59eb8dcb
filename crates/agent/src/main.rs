//! `arnia-agent`: see the library.

use std::process::ExitCode;

use agent::Root;
use agent::listen::Address;

const HELP: &str = "\
Does in a guest what its host asks, over the virtio socket.

Usage: arnia-agent [COMMAND]

Commands:
  serve       Serve the host (default)
                --listen vsock        on the virtio socket, port 771 (default)
                --listen unix:PATH    on a Unix socket, for tests
  firstboot   Take on the personality that the seed disk holds, if it is a new one
  generalise  Forget this machine's identity, so that its disk can serve as a template

Options:
  -h, --help     Print this
  -V, --version  Print the version

It has no configuration. To see what it does: journalctl -u arnia-agent
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        [] | ["serve"] => agent::listen::serve(&Address::Vsock),
        ["serve", "--listen", address] => match Address::parse(address) {
            Some(address) => agent::listen::serve(&address),
            None => return usage(&format!("{address:?} is no address: `vsock` or `unix:PATH`")),
        },
        ["firstboot"] => agent::firstboot::run(&Root::live()),
        ["generalise"] => agent::generalise::run(&Root::live()).map_err(|error| error.to_string()),
        ["-h" | "--help"] => {
            print!("{HELP}");
            Ok(())
        }
        ["-V" | "--version"] => {
            println!("arnia-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => return usage(&format!("unknown arguments: {}", arguments.join(" "))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("arnia-agent: {message}");
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("arnia-agent: {message}; see arnia-agent --help");
    ExitCode::from(2)
}
