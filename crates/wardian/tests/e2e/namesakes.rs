//! Processes that have the names of ours and are not.

use crate::support::{Server, WARDIAN};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Ended when dropped.
struct Namesake(Child);

impl Drop for Namesake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process with the name of `program`, of another user, or of root in no cgroup of ours.
fn namesake(dir: &Path, program: &str, user: Option<&str>) -> Namesake {
    let path = dir.join(program);
    crate::support::copy_program("/bin/sleep", &path);
    let mut command = match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(&path);
            command
        }
        None => Command::new(&path),
    };
    let child = Namesake(command.arg("1000").stdin(Stdio::null()).spawn().unwrap());
    let comm = format!("/proc/{}/comm", child.0.id());
    while std::fs::read_to_string(&comm).unwrap().trim() != program {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child
}

#[tokio::test]
async fn a_process_with_the_name_of_a_keeper_is_not_told_as_ours() {
    let server = Server::start().await;
    server.create("c").await;
    let dir = crate::support::base();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let theirs = namesake(dir.path(), "wardian-keeper", Some("65534"));
    std::fs::remove_file(dir.path().join("wardian-keeper")).unwrap();
    let roots = namesake(dir.path(), "wardian-keeper", None);
    let output = Command::new(WARDIAN)
        .args(["doctor", "--leaks", "--verbose", "--run"])
        .arg(server.run())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for pid in [theirs.0.id(), roots.0.id()] {
        assert!(!text.contains(&format!("process {pid} ")), "{text}");
    }
    server.finish().await;
}
