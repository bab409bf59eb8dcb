//! Images on the way between hosts, by `arnia`: over a registry and a web server that are not ours, over connections that
//! break, and run from where they are once they are verified.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use vm_test::places::{Certificate, Server};
use vm_test::{Arnia, Case, HttpServer, Relay, Suite};

/// What connections that break have brought before, in bytes. Every answer but that of a large blob is shorter.
const BROKEN_AFTER: u64 = 1_500_000;
/// Length of the disk, in bytes.
const DISK_LEN: usize = 4 << 20;
/// What all but blobs takes at most, in bytes.
const OVERHEAD: u64 = 200_000;
const IMAGE: &str = "shop:1";

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("moving::by_a_registry", registry);
    suite.engineless_test("moving::by_a_registry_with_a_login", login);
    suite.engineless_test("moving::by_a_web_server", web);
    suite.engineless_test("moving::appliances_are_verified_and_run", appliances);
}

/// A host with an image whose disk cannot be compressed.
fn publisher(case: &Case) -> Result<Arnia> {
    let arnia = Arnia::new()?;
    let disk = case.path("disk.raw");
    fs::write(&disk, HttpServer::bytes(DISK_LEN))?;
    arnia.import_guest(&case.artifacts, IMAGE, &disk)?;
    Ok(arnia)
}

fn digest(arnia: &Arnia, name: &str) -> Result<String> {
    Ok(arnia.json(&["image", "info", name])?["digest"].as_str().context("a digest")?.to_owned())
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Pulls over a connection that breaks twice, then to the end: what has come once does not come again.
fn pull(from: &Arnia, relay: &Relay, place: &str, variables: &[(&str, &Path)]) -> Result<()> {
    let pull = |to: &Arnia| -> Result<Output> {
        let mut command = to.command(&["image", "pull", place, "--name", "here:1"]);
        Ok(command.envs(variables.iter().copied()).output()?)
    };
    let (easy, hard) = (Arnia::new()?, Arnia::new()?);
    let before = relay.brought();
    let whole = pull(&easy)?;
    ensure!(whole.status.success(), "{}", errors(&whole));
    let needed = relay.brought() - before;
    relay.break_after(Some(BROKEN_AFTER));
    for _ in 0..2 {
        let broken = pull(&hard)?;
        ensure!(!broken.status.success() && errors(&broken).contains("goes on"), "{broken:?}");
        ensure!(
            hard.json(&["image", "ls"])?.as_array().is_some_and(Vec::is_empty),
            "half an image has a name"
        );
    }
    relay.break_after(None);
    let whole = pull(&hard)?;
    ensure!(whole.status.success(), "{}", errors(&whole));
    let brought = relay.brought() - before - needed;
    println!("an image takes {needed} bytes, over a connection that broke twice {brought}");
    ensure!(brought < needed + OVERHEAD, "{brought} bytes came, and {needed} are enough");
    for to in [easy, hard] {
        ensure!(digest(&to, "here:1")? == digest(from, IMAGE)?, "it is another image");
        to.run(&["image", "verify", "here:1"])?;
    }
    Ok(())
}

/// The largest file below a folder.
fn largest(folder: &Path) -> Result<(u64, PathBuf)> {
    let mut found = (0, PathBuf::new());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let this = if path.is_dir() { largest(&path)? } else { (path.metadata()?.len(), path) };
        found = found.max(this);
    }
    Ok(found)
}

/// Changes a byte in the middle of a file.
fn damage(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("a file with something in it")? ^= 1;
    Ok(fs::write(path, bytes)?)
}

/// Whether a command has failed because what came is not what was named.
fn found_out(output: &Output) -> bool {
    let errors = errors(output);
    !output.status.success() && (errors.contains("damaged") || errors.contains("and not blake3"))
}

/// What a place gives that is not what was pushed is refused, and leaves nothing.
fn refuses_damage(server: &Server, place: &str, variables: &[(&str, &Path)]) -> Result<()> {
    damage(&largest(&server.folder)?.1)?;
    let to = Arnia::new()?;
    let output =
        to.command(&["image", "pull", place, "--name", "here:1"]).envs(variables.iter().copied()).output()?;
    ensure!(found_out(&output), "{output:?}");
    ensure!(to.json(&["image", "ls"])?.as_array().is_some_and(Vec::is_empty), "damage has a name");
    Ok(())
}

/// A push that broke off is taken up, too.
fn registry(case: &Case) -> Result<()> {
    let from = publisher(case)?;
    let server = Server::registry(&case.folder)?;
    let relay = Relay::to(server.port)?;
    let place = format!("oci://127.0.0.1:{}/team/{IMAGE}", relay.port());
    relay.break_after(Some(300));
    let broken = from.try_run(&["image", "push", IMAGE, &place])?;
    ensure!(!broken.status.success(), "{broken:?}");
    relay.break_after(None);
    from.run(&["image", "push", IMAGE, &place])?;
    pull(&from, &relay, &place, &[])?;
    // A second push sends nothing large.
    let sent = relay.sent();
    from.run(&["image", "push", IMAGE, &place])?;
    ensure!(relay.sent() - sent < OVERHEAD, "what is there was sent again: {} bytes", relay.sent() - sent);
    refuses_damage(&server, &place, &[])
}

/// By variables, and by the file that `podman login` writes. The daemon is told, and keeps nothing of it.
fn login(case: &Case) -> Result<()> {
    let from = publisher(case)?;
    let server = Server::registry_with_login(&case.folder)?;
    let place = format!("oci://127.0.0.1:{}/team/{IMAGE}", server.port);
    let variables = [("ARNIA_REGISTRY_USER", Server::USER), ("ARNIA_REGISTRY_PASSWORD", Server::PASSWORD)];
    let nobody = from.try_run(&["image", "push", IMAGE, &place])?;
    ensure!(!nobody.status.success() && errors(&nobody).contains("wants a login"), "{nobody:?}");
    let pushed = from.command(&["image", "push", IMAGE, &place]).envs(variables).output()?;
    ensure!(pushed.status.success(), "{pushed:?}");

    let run = ["run", "--memory", "192M", "--allow-unsigned", &place, "--name", "it", "--", "hostname"];
    let to = Arnia::new()?;
    let nobody = to.try_run(&run)?;
    ensure!(!nobody.status.success() && errors(&nobody).contains("podman login"), "{nobody:?}");
    let wrong = [variables[0], (variables[1].0, "wrong")];
    let refused = to.command(&run).envs(wrong).output()?;
    ensure!(!refused.status.success(), "{refused:?}");
    let ran = to.command(&run).envs(variables).output()?;
    ensure!(ran.status.success() && ran.stdout == b"it\n", "{ran:?}");
    let kept = Command::new("grep").args(["-r", "-l", Server::PASSWORD]).arg(to.home()).output()?;
    ensure!(kept.stdout.is_empty(), "the password is in {}", String::from_utf8_lossy(&kept.stdout));

    let file = case.path("auth.json");
    // The two with a colon in between, in Base64.
    let pair = "YW5uOm9wZW4tc2VzYW1lLTc=";
    let host = format!("127.0.0.1:{}", server.port);
    fs::write(&file, serde_json::json!({"auths": {host: {"auth": pair}}}).to_string())?;
    let other = Arnia::new()?;
    let ran = other.command(&run).env("REGISTRY_AUTH_FILE", &file).output()?;
    ensure!(ran.status.success() && ran.stdout == b"it\n", "{ran:?}");
    Ok(())
}

/// Over TLS, with a certificate of an authority that only this host knows.
fn web(case: &Case) -> Result<()> {
    let from = publisher(case)?;
    let tls = Certificate::make(&case.folder)?;
    let server = Server::web(&case.folder, Some((&tls.certificate, &tls.key)))?;
    let relay = Relay::to(server.port)?;
    let place = format!("https://127.0.0.1:{}/shop/1.json", relay.port());
    let unknown = from.try_run(&["image", "push", IMAGE, &place])?;
    ensure!(!unknown.status.success() && errors(&unknown).contains("certificate"), "{unknown:?}");
    let variables = [("SSL_CERT_FILE", tls.authority.as_path())];
    let pushed = from.command(&["image", "push", IMAGE, &place]).envs(variables).output()?;
    ensure!(pushed.status.success(), "{}", errors(&pushed));
    pull(&from, &relay, &place, &variables)?;
    refuses_damage(&server, &place, &variables)
}

/// One command runs what is elsewhere: if somebody has signed it who is trusted, and nothing else.
fn appliances(case: &Case) -> Result<()> {
    let from = publisher(case)?;
    let server = Server::web(&case.folder, None)?;
    let place = |tag: &str| format!("http://127.0.0.1:{}/shop/{tag}.json", server.port);
    let file = |name: &str| case.path(name).to_string_lossy().into_owned();
    let (ours, theirs, archive) = (file("ours"), file("theirs"), file("shop.tar"));
    from.run(&["image", "push", IMAGE, &place("unsigned")])?;
    from.run(&["image", "keygen", &ours])?;
    from.run(&["image", "keygen", &theirs])?;
    from.run(&["image", "sign", IMAGE, "--key", &ours])?;
    from.run(&["image", "push", IMAGE, &place("1")])?;
    from.run(&["image", "push", IMAGE, &place("changed")])?;
    let changed = server.folder.join("shop/changed.json");
    let text = fs::read_to_string(&changed)?;
    ensure!(text.contains("x86_64"), "the manifest has another form: {text}");
    fs::write(&changed, text + " ")?;
    from.run(&["image", "export", IMAGE, &archive])?;
    let (ours, theirs) = (ours + ".pub", theirs + ".pub");

    let to = Arnia::new()?;
    let refused = |line: &[&str], reason: &str| -> Result<()> {
        let output = to.try_run(&[&["run", "--memory", "192M"][..], line].concat())?;
        ensure!(!output.status.success() && errors(&output).contains(reason), "{line:?}: {output:?}");
        ensure!(
            to.json(&["image", "ls"])?.as_array().is_some_and(Vec::is_empty),
            "{line:?} has left an image"
        );
        ensure!(to.json(&["ls"])?.as_array().is_some_and(Vec::is_empty), "{line:?} has left a machine");
        Ok(())
    };
    refused(&[&place("1")], "nobody is trusted")?;
    refused(&[&place("1"), "--key", &theirs], "you do not trust")?;
    refused(&[&place("changed"), "--key", &ours], "was changed")?;
    refused(&[&place("unsigned"), "--key", &ours], "not signed")?;
    refused(&[&archive, "--key", &theirs], "you do not trust")?;
    refused(&[&file("disk.raw"), "--key", &ours], "not signed")?;
    refused(&[&place("none"), "--key", &ours], "404")?;
    refused(&[&file("none.ova"), "--key", &ours], "there is no file")?;

    let run = |what: &str, name: &str, more: &[&str]| -> Result<()> {
        let line =
            [&["run", "--memory", "192M", what, "--name", name][..], more, &["--", "hostname"]].concat();
        let said = to.run(&line)?;
        ensure!(said.trim() == name, "{what} says {said:?}");
        Ok(())
    };
    run(&place("1"), "by-key", &["--key", &ours])?;
    let trusted = to.home().join("config/arnia/trusted-keys");
    fs::create_dir_all(&trusted)?;
    fs::copy(&ours, trusted.join("publisher.pub"))?;
    run(&archive, "from-file", &[])?;
    run(&place("1"), "again", &[])?;
    // What was damaged on the way is not run either, whoever has signed it.
    damage(Path::new(&archive))?;
    to.try_run(&["rm", "--force", "from-file"])?;
    let again = Arnia::new()?;
    let output = again.try_run(&["run", &archive, "--key", &ours])?;
    ensure!(found_out(&output), "{output:?}");
    Ok(())
}
