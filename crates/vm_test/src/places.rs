//! Places where images are offered: programs of Debian's that are not ours.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{KillOnDrop, Patience, free_port};

/// A server on the loopback. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// Its port.
    pub port: u16,
    /// The folder that its content is in.
    pub folder: PathBuf,
    _child: KillOnDrop,
}

/// Of [`Server::PASSWORD`], by bcrypt.
const PASSWORD_HASH: &str = "$2b$05$bNUXqz1.ilQTX08vR.BN4eTsE9Lq8pWrBODfy.UrZJjE..XMzyzWC";

impl Server {
    /// Who a registry with a login serves.
    pub const USER: &str = "ann";
    /// And by what.
    pub const PASSWORD: &str = "open-sesame-7";

    /// The reference implementation of registries, from Debian's package docker-registry, with its things in a folder.
    ///
    /// # Errors
    /// If it is not installed or does not come up.
    pub fn registry(folder: &Path) -> Result<Server> {
        Server::registry_with(folder, "")
    }

    /// One that serves nobody but [`Server::USER`] with [`Server::PASSWORD`].
    ///
    /// # Errors
    /// As [`Server::registry`].
    pub fn registry_with_login(folder: &Path) -> Result<Server> {
        let users = folder.join("htpasswd");
        fs::write(&users, format!("{}:{PASSWORD_HASH}\n", Server::USER))?;
        let auth = format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", users.display());
        Server::registry_with(folder, &auth)
    }

    fn registry_with(folder: &Path, more: &str) -> Result<Server> {
        let (port, content) = (free_port()?, folder.join("registry"));
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n{more}",
            content.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        start(&mut command, port, content)
    }

    /// nginx, of Debian's package nginx-light, over a folder: files by GET and PUT. With a certificate and its key, over TLS.
    ///
    /// # Errors
    /// If it is not installed or does not come up.
    pub fn web(folder: &Path, tls: Option<(&Path, &Path)>) -> Result<Server> {
        let (port, content) = (free_port()?, folder.join("www"));
        fs::create_dir_all(&content)?;
        let ssl = if tls.is_some() { " ssl" } else { "" };
        let certificate = tls.map_or(String::new(), |(certificate, key)| {
            format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), key.display())
        });
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};", folder.display()))
            .join(" ");
        // Who is no root stays who it is anyhow, and is told so.
        let text = format!(
            "user root; daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log;\nevents {{}}\n\
             http {{ access_log off; {temporary}\n server {{ listen 127.0.0.1:{port}{ssl}; {certificate} root {1};\n \
             dav_methods PUT; create_full_put_path on; client_max_body_size 0; }} }}\n",
            folder.display(),
            content.display()
        );
        let config = folder.join("nginx.conf");
        fs::write(&config, text)?;
        let program = Path::new("/usr/sbin/nginx");
        let mut command = Command::new(program);
        command.arg("-e").arg(folder.join("nginx.log")).arg("-c").arg(&config);
        start(&mut command, port, content)
    }
}

fn start(command: &mut Command, port: u16, folder: PathBuf) -> Result<Server> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = KillOnDrop(child.with_context(|| format!("start {command:?}; cargo xtask installs it"))?);
    let started = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(child.0.try_wait()?.is_none(), "{command:?} has ended");
        ensure!(started.elapsed() < Patience::Host.limit(), "{command:?} does not come up");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Server { port, folder, _child: child })
}

/// A certificate for the loopback's address, made by OpenSSL.
#[derive(Debug)]
pub struct Certificate {
    /// Who vouches for it.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in a folder.
    ///
    /// # Errors
    /// If `openssl` is not installed.
    pub fn make(folder: &Path) -> Result<Certificate> {
        let script = "cd \"$1\"
            new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \"$@\"; }
            new -x509 -keyout ca.key -out ca.pem -subj /CN=authority
            new -keyout server.key -out server.csr -subj /CN=server
            echo subjectAltName=IP:127.0.0.1 > server.ext
            openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem";
        let made = Command::new("sh").args(["-eu", "-c", script, "sh"]).arg(folder).output()?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Certificate {
            authority: folder.join("ca.pem"),
            certificate: folder.join("server.pem"),
            key: folder.join("server.key"),
        })
    }
}
