//! Limits by the quota of the store's own file system.

use super::image::on_new;
use super::*;

/// Runs the table where this driver works, and says where it does not.
fn table_if_usable(driver: DiskDriver, dir: &Path) {
    let config = Config { disk_driver: Some(driver), ..config(dir) };
    match Store::open(&config) {
        Ok(_) => table(driver, dir),
        Err(Error::Driver(error)) => skipped(&error.to_string()),
        Err(error) => panic!("{error:?}"),
    }
}

/// XFS or ext4 with `prjquota`, such as the disks of the tests in virtual machines.
#[test]
fn the_table_of_project_quota() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    table_if_usable(DiskDriver::ProjectQuota, dir.path());
}

#[test]
fn the_table_of_btrfs_with_quota() {
    needs!(Root, Loop);
    on_new(&["mkfs.btrfs", "-q"], 1 << 30, |dir| {
        // Simple quota where btrfs-progs and the kernel have it (6.7).
        let enable = |options: &[&str]| {
            let mut command = std::process::Command::new("btrfs");
            command.args(["quota", "enable"]).args(options).arg(dir).output()
        };
        let is_on = |output: &std::io::Result<std::process::Output>| {
            output.as_ref().is_ok_and(|output| output.status.success())
        };
        let simple = enable(&["--simple"]);
        let quota = if is_on(&simple) { simple } else { enable(&[]) };
        if is_on(&quota) {
            table_if_usable(DiskDriver::Btrfs, dir);
        } else {
            skipped(&format!("quota of btrfs: {quota:?}"));
        }
    });
}
