//! Any bytes as the bundle of a container or a pea.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardian_runtime::bundle;
use wardian_runtime::oci::Spec;

fuzz_target!(|data: &[u8]| {
    // What is read is written as what it was.
    if let Some(spec) = str::from_utf8(data).ok().and_then(|text| Spec::read(text).ok()) {
        let text = serde_json::to_string(&spec).expect("its keys are strings");
        assert_eq!(Spec::read(&text).expect("it was read before"), spec);
    }
    // What the launcher takes for granted.
    let Ok(plan) = bundle::plan(data) else { return };
    let absolute = |path: &str| path.starts_with('/');
    assert!(plan.mounts.iter().all(|mount| absolute(&mount.destination)));
    assert!(plan.masked.iter().all(|path| absolute(path)) && absolute(&plan.cgroup));
    assert!(plan.nodes.iter().all(|node| !node.name.contains('/') && !node.name.is_empty() && node.mode <= 0o777));
    assert!((plan.rights.uid, plan.rights.gid) == (0, 0) && plan.rights.umask <= 0o777);
    assert!(plan.joins.is_none_or(|pid| pid > 0));
    assert!(plan.user || (plan.root_ids == (0, 0) && plan.tty_gid == 5));
});
