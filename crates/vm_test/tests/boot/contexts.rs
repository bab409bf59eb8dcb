//! A daemon of another host: one with a home of its own, reached over the network.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use vm_test::places::Server;
use vm_test::{Arnia, Case, KillOnDrop, Suite, free_port};

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("contexts::another_host", another_host);
}

/// A daemon that listens at a port, and its certificate's fingerprint. What it says goes on being read.
fn listen(far: &Arnia, port: u16) -> Result<(KillOnDrop, String)> {
    let mut command = far.command(&["daemon", "--listen", &format!("127.0.0.1:{port}")]);
    let mut child = KillOnDrop(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(child.0.stderr.take().context("a pipe")?).lines();
    let fingerprint = loop {
        let line = lines.next().context("the daemon has ended")??;
        if let Some((_, fingerprint)) = line.split_once("fingerprint is ") {
            break fingerprint.to_owned();
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    Ok((child, fingerprint))
}

/// A command for the other daemon.
fn there<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["--context", "lab"], arguments].concat()
}

fn another_host(case: &Case) -> Result<()> {
    let (near, far) = (Arnia::new()?, Arnia::new()?);
    let port = free_port()?;
    let (_daemon, fingerprint) = listen(&far, port)?;
    far.import_tiny(&case.artifacts)?;
    far.run(&["user", "create", "me", "--role", "admin"])?;
    // What `token create` writes is what `--token-file` reads.
    let token = near.home().join("token");
    std::fs::write(&token, far.run(&["token", "create", "me"])?)?;
    let (address, token) = (format!("127.0.0.1:{port}"), token.to_string_lossy().into_owned());
    let add = ["context", "add", "lab", &address, "--token-file", &token, "--fingerprint"];
    near.run(&[&add[..], &[&fingerprint]].concat())?;

    // Its images and machines, not those of here.
    let run = |arguments: &[&str]| near.run(&there(arguments));
    let try_run = |arguments: &[&str]| near.try_run(&there(arguments));
    ensure!(near.run(&["image", "ls"])?.contains("There are no images"), "images of another are here");
    ensure!(run(&["image", "ls"])?.contains(Arnia::TINY), "its images are not listed");
    let info = |text: String| -> Result<serde_json::Value> { Ok(serde_json::from_str(&text)?) };
    let seen = info(run(&["image", "info", Arnia::TINY, "-o", "json"])?)?;
    ensure!(seen["digest"] == far.json(&["image", "info", Arnia::TINY])?["digest"], "{seen}");
    let said = run(&["run", Arnia::TINY, "--memory", "192M", "--name", "one", "--", "hostname"])?;
    ensure!(said.trim() == "one", "{said:?}");
    ensure!(far.json(&["ls"])?.as_array().is_some_and(|vms| vms.len() == 1), "it runs elsewhere");
    ensure!(near.json(&["ls"])?.as_array().is_some_and(Vec::is_empty), "it runs here, too");

    // Files of here are none of its own.
    let disk = near.home().join("disk.raw");
    std::fs::File::create(&disk)?.set_len(1 << 20)?;
    for (arguments, why) in [
        (&["mount", "./src", "one:/mnt"][..], "the daemon is on another"),
        (&["create", "two", "--firmware", "bios", "--disk", "disk.raw"], "the daemon is on another"),
        (&["image", "import", &disk.to_string_lossy(), "--name", "x:1"], "images of another daemon"),
        (&["image", "build", "debian", "--cpus", "4"], "builds on this host"),
        (&["image", "prune"], "images of another daemon"),
    ] {
        let output = try_run(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains(why), "{arguments:?}: {output:?}");
    }

    // Whom that host trusts counts there, whoever is trusted here or not.
    let registry = Server::registry(&case.folder)?;
    let place = format!("oci://127.0.0.1:{}/team/x:1", registry.port);
    far.run(&["image", "push", Arnia::TINY, &place])?;
    let key = far.home().join("key");
    far.run(&["image", "keygen", &key.to_string_lossy()])?;
    let trusted = far.home().join("config/arnia/trusted-keys");
    std::fs::create_dir_all(&trusted)?;
    std::fs::copy(key.with_extension("pub"), trusted.join("key.pub"))?;
    let unsigned = try_run(&["image", "pull", &place, "--name", "x:1"])?;
    let said = String::from_utf8_lossy(&unsigned.stderr);
    ensure!(!unsigned.status.success() && said.contains("not signed"), "{unsigned:?}");
    run(&["image", "pull", &place, "--name", "x:1", "--allow-unsigned"])?;
    run(&["image", "rm", "x:1"])?;

    run(&["rm", "--force", "one"])?;
    ensure!(run(&["image", "rm", Arnia::TINY])?.contains("removed the name"), "a name stays");
    ensure!(!far.run(&["image", "ls"])?.contains(Arnia::TINY), "the name is there");
    let again = try_run(&["image", "rm", Arnia::TINY])?;
    ensure!(again.status.code() == Some(3), "{again:?}");

    // One that shows another certificate is not talked to.
    let other = format!("sha256:{}", "0".repeat(64));
    let wrong = near.try_run(&[
        "context",
        "add",
        "wrong",
        &address,
        "--token-file",
        &token,
        "--fingerprint",
        &other,
    ])?;
    ensure!(!wrong.status.success(), "{wrong:?}");
    Ok(())
}
