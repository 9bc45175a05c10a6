//! The configuration: the YAML file that `--config` names, and the flags, which win over it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Error, go_error};
use super::flags::Parsed;

/// The maximum size of a configuration file in bytes. Real ones have some hundred.
const MAX_FILE: u64 = 1 << 20;

/// The configuration, as the log shows it: names and order are those of GrootFS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// The directory of the store.
    pub store_path: String,
    /// Whether the directory was named. GrootFS' log does not show it.
    #[serde(skip)]
    pub has_store: bool,
    /// Programs of GrootFS that are not needed here.
    pub tardis_bin: String,
    newuidmap_bin: String,
    newgidmap_bin: String,
    pub metron_endpoint: String,
    /// The lowest level that is logged.
    pub log_level: String,
    /// The file of the log; empty: standard error.
    pub log_file: String,
    /// Of `create`.
    pub create: Create,
    /// Of `clean`.
    pub clean: Clean,
    /// Of `init-store`.
    pub init: Init,
}

/// What `create` heeds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Create {
    /// Whether the limit is of the writable layer alone.
    pub exclude_image_from_quota: bool,
    /// Whether OCI layouts are taken without a look at digests and sizes.
    pub skip_layer_validation: bool,
    /// Whether unused layers are collected afterwards.
    pub with_clean: bool,
    /// The log of that; empty: standard error.
    pub clean_log_file: String,
    /// Whether the caller mounts the root file system.
    pub without_mount: bool,
    /// The limit of the disk in bytes; 0: none.
    pub disk_limit_size_bytes: i64,
    /// Registries that are asked without TLS, or without a look at their certificate.
    pub insecure_registries: Option<Vec<String>>,
    /// The directory of certificates for servers that layers are fetched from; empty: none.
    #[serde(rename = "RemoteLayerClientCertificatesPath")]
    pub certificates: String,
    /// Servers that an image may name for its layers. GrootFS has no such list, so its log does not show it.
    #[serde(skip)]
    pub layer_hosts: Vec<String>,
}

/// What `clean` heeds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Clean {
    /// Nothing is collected while layers and limits together are below this number of bytes; 0: always.
    pub threshold_bytes: i64,
}

/// What `init-store` heeds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Init {
    /// What `capacity` answers, in bytes.
    pub store_size_bytes: i64,
    owner_user: String,
    owner_group: String,
    #[serde(rename = "WithDirectIO")]
    with_direct_io: bool,
}

/// The file. Unknown keys are ignored, and so is a key without a value.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    store: Option<String>,
    tardis_bin: Option<String>,
    newuidmap_bin: Option<String>,
    newgidmap_bin: Option<String>,
    metron_endpoint: Option<String>,
    log_level: Option<String>,
    log_file: Option<String>,
    create: Option<CreateFile>,
    clean: Option<CleanFile>,
    init: Option<InitFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CreateFile {
    disk_limit_size_bytes: Option<i64>,
    exclude_image_from_quota: Option<bool>,
    skip_layer_validation: Option<bool>,
    with_clean: Option<bool>,
    clean_log_file: Option<String>,
    without_mount: Option<bool>,
    insecure_registries: Option<Vec<String>>,
    remote_layer_client_certificates_path: Option<String>,
    layer_hosts: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CleanFile {
    threshold_bytes: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InitFile {
    store_size_bytes: Option<i64>,
    with_direct_io: Option<bool>,
    owneruser: Option<String>,
    ownergroup: Option<String>,
}

impl File {
    fn read(path: &str) -> Result<Self, Error> {
        let failed = |error: &std::io::Error| Error::ConfigPath(go_error("open", path, error));
        let length = Path::new(path).metadata().map_err(|error| failed(&error))?.len();
        if length > MAX_FILE {
            return Err(Error::ConfigFile(format!("it is larger than {MAX_FILE} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        Self::parse(&text)
    }

    /// Parses the file. The parser bounds nesting, aliases and the number of nodes.
    fn parse(text: &str) -> Result<Self, Error> {
        let blank = |line: &str| line.trim_start().is_empty() || line.trim_start().starts_with('#');
        if text.lines().all(blank) {
            return Ok(Self::default());
        }
        let file: Result<Option<Self>, _> = serde_saphyr::from_str(text);
        Ok(file.map_err(|error| Error::ConfigFile(error.to_string()))?.unwrap_or_default())
    }
}

impl Config {
    /// Reads the configuration file and applies the global flags.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn new(global: &Parsed) -> Result<Self, Error> {
        let file = match global.text("config").filter(|path| !path.is_empty()) {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        Ok(Self::of(file, global))
    }

    fn of(file: File, global: &Parsed) -> Self {
        let text = |flag: &str, key: Option<String>, default: &str| {
            let given = global.is_set(flag).then(|| global.text(flag).unwrap_or_default().to_owned());
            let key = key.filter(|value| !value.is_empty());
            given.or(key).unwrap_or_else(|| default.to_owned())
        };
        let create = file.create.unwrap_or_default();
        let init = file.init.unwrap_or_default();
        let has_store = global.is_set("store") || file.store.as_ref().is_some_and(|store| !store.is_empty());
        let mut config = Self {
            has_store,
            store_path: text("store", file.store, "/var/lib/grootfs"),
            tardis_bin: text("tardis-bin", file.tardis_bin, "tardis"),
            newuidmap_bin: text("newuidmap-bin", file.newuidmap_bin, "newuidmap"),
            newgidmap_bin: text("newgidmap-bin", file.newgidmap_bin, "newgidmap"),
            // An empty flag does not clear the key.
            metron_endpoint: global
                .text("metron-endpoint")
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .or(file.metron_endpoint)
                .unwrap_or_default(),
            log_level: text("log-level", file.log_level, "fatal"),
            log_file: text("log-file", file.log_file, ""),
            create: Create {
                exclude_image_from_quota: create.exclude_image_from_quota.unwrap_or(false),
                skip_layer_validation: create.skip_layer_validation.unwrap_or(false),
                with_clean: create.with_clean.unwrap_or(false),
                clean_log_file: create.clean_log_file.unwrap_or_default(),
                without_mount: create.without_mount.unwrap_or(false),
                disk_limit_size_bytes: create.disk_limit_size_bytes.unwrap_or(0),
                insecure_registries: create.insecure_registries,
                certificates: create.remote_layer_client_certificates_path.unwrap_or_default(),
                layer_hosts: create.layer_hosts.unwrap_or_default(),
            },
            clean: Clean { threshold_bytes: file.clean.unwrap_or_default().threshold_bytes.unwrap_or(0) },
            init: Init {
                store_size_bytes: init.store_size_bytes.unwrap_or(0),
                owner_user: init.owneruser.unwrap_or_default(),
                owner_group: init.ownergroup.unwrap_or_default(),
                with_direct_io: init.with_direct_io.unwrap_or(false),
            },
        };
        // A log file makes the default level useful.
        if !config.log_file.is_empty() && config.log_level.eq_ignore_ascii_case("fatal") {
            config.log_level = "info".to_owned();
        }
        config
    }

    /// Applies the flags of `create`.
    pub fn with_create(mut self, flags: &Parsed) -> Self {
        let create = &mut self.create;
        if let Some(bytes) = flags.number("disk-limit-size-bytes") {
            create.disk_limit_size_bytes = bytes;
        }
        for (flag, value) in [
            ("exclude-image-from-quota", &mut create.exclude_image_from_quota),
            ("skip-layer-validation", &mut create.skip_layer_validation),
        ] {
            if flags.is_set(flag) {
                *value = flags.bool(flag);
            }
        }
        // Of these flags it counts whether they are given, not their value.
        for (with, without, value) in [
            ("with-clean", "without-clean", &mut create.with_clean),
            ("without-mount", "with-mount", &mut create.without_mount),
        ] {
            *value = flags.is_set(with) || *value && !flags.is_set(without);
        }
        let registries = flags.list("insecure-registry");
        if !registries.is_empty() {
            create.insecure_registries = Some(registries);
        }
        if let Some(file) = flags.text("clean-log-file") {
            create.clean_log_file = file.to_owned();
        }
        self.with_clean(flags)
    }

    /// Applies the flags of `clean`.
    pub fn with_clean(mut self, flags: &Parsed) -> Self {
        if let Some(bytes) = flags.number("threshold-bytes") {
            self.clean.threshold_bytes = bytes;
        }
        self
    }

    /// Returns the limit in bytes that holds for the image and the writable layer together; `None` without one.
    pub fn inclusive_limit(&self) -> Option<u64> {
        let limit = u64::try_from(self.create.disk_limit_size_bytes).ok().filter(|limit| *limit > 0)?;
        (!self.create.exclude_image_from_quota).then_some(limit)
    }

    /// Applies the flags of `init-store`.
    pub fn with_init(mut self, flags: &Parsed) -> Self {
        if let Some(bytes) = flags.number("store-size-bytes") {
            self.init.store_size_bytes = bytes;
        }
        self.init.with_direct_io = flags.bool("with-direct-io") || self.init.with_direct_io;
        self
    }

    /// Checks the values, as every command does once all flags are applied.
    ///
    /// # Errors
    /// A negative limit or threshold.
    pub fn check(self) -> Result<Self, Error> {
        if self.create.disk_limit_size_bytes < 0 {
            return Err(Error::Negative("disk limit"));
        }
        if self.clean.threshold_bytes < 0 {
            return Err(Error::Negative("clean threshold"));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{flags, usage};
    use super::*;

    fn global(args: &[&str]) -> Parsed {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        flags::parse(&usage::GLOBAL, &args).unwrap()
    }

    fn create(args: &[&str]) -> Parsed {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        flags::parse(usage::find("create").unwrap().flags, &args).unwrap()
    }

    const YAML: &str = "
# as the thresholder of garden-runc-release writes it
store: /var/vcap/data/grootfs/store/unprivileged
tardis_bin: /var/vcap/packages/grootfs/bin/tardis
newuidmap_bin: /var/vcap/packages/garden-idmapper/bin/newuidmap
newgidmap_bin: /var/vcap/packages/garden-idmapper/bin/newgidmap
log_level: error
log_timestamp_format: rfc3339
metron_endpoint: \"127.0.0.1:3457\"
create:
  with_clean: true
  skip_layer_validation: true
  insecure_registries: []
  remote_layer_client_certificates_path: /var/vcap/jobs/garden/certs
  without_mount: false
  clean_log_file: /var/vcap/sys/log/garden/groot.clean.log
clean:
  threshold_bytes: 10737418240
init:
  store_size_bytes: 16106127360
  owneruser: root
  with_direct_io: null
";

    #[test]
    fn a_file_of_a_real_deployment() {
        let config = Config::of(File::parse(YAML).unwrap(), &global(&[]));
        assert_eq!(config.store_path, "/var/vcap/data/grootfs/store/unprivileged");
        assert_eq!((config.metron_endpoint.as_str(), config.log_level.as_str()), ("127.0.0.1:3457", "error"));
        assert!(config.create.with_clean && config.create.skip_layer_validation);
        assert_eq!(config.create.insecure_registries, Some(vec![]));
        assert_eq!(
            (config.clean.threshold_bytes, config.init.store_size_bytes),
            (10_737_418_240, 16_106_127_360)
        );
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.contains(r#""Init":{"StoreSizeBytes":16106127360,"OwnerUser":"root","OwnerGroup":"","WithDirectIO":false}"#), "{json}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let of = |yaml: &str, flags: &[&str]| Config::of(File::parse(yaml).unwrap(), &global(flags));
        assert_eq!(of("", &[]).store_path, "/var/lib/grootfs");
        assert_eq!(of("store: /s", &[]).store_path, "/s");
        assert_eq!(of("store: /s", &["--store", "/t"]).store_path, "/t");
        assert_eq!(of("metron_endpoint: a", &["--metron-endpoint", ""]).metron_endpoint, "a");
        assert_eq!(of("# nothing\n", &["--log-file", "/l"]).log_level, "info");
        assert_eq!(of("log_level: debug", &["--log-file", "/l"]).log_level, "debug");
        let clean = "create: {with_clean: true, without_mount: true, insecure_registries: [a]}";
        let with = |args: &[&str]| of(clean, &[]).with_create(&create(args)).create;
        assert!(with(&[]).with_clean && with(&[]).without_mount);
        assert!(!with(&["--without-clean"]).with_clean && !with(&["--with-mount"]).without_mount);
        // Given is true, and without wins.
        assert!(with(&["--with-clean=false"]).with_clean);
        assert!(with(&["--with-mount", "--without-mount"]).without_mount);
        assert_eq!(with(&["--insecure-registry", "b"]).insecure_registries, Some(vec!["b".into()]));
    }

    #[test]
    fn what_is_refused() {
        for bad in ["create: [", "store: {a: b}", "clean: {threshold_bytes: many}", "a: b: c", "create: 7"] {
            let error = File::parse(bad).unwrap_err();
            assert!(matches!(&error, Error::ConfigFile(_)), "{bad}: {error}");
            assert!(error.to_string().starts_with("invalid config file: yaml: "), "{error}");
        }
        // Neither depth nor aliases take the memory.
        for bomb in [format!("create: {}", "[".repeat(100_000)), {
            let level = |n: usize| format!("l{n}: &l{n} [{}]\n", format!("*l{},", n - 1).repeat(10));
            format!("l0: &l0 [x]\n{}", (1..12).map(level).collect::<String>())
        }] {
            assert!(File::parse(&bomb).is_err());
        }
        let config = |yaml: &str| Config::of(File::parse(yaml).unwrap(), &global(&[])).check();
        let text = |yaml: &str| config(yaml).unwrap_err().to_string();
        assert_eq!(
            text("create: {disk_limit_size_bytes: -1}"),
            "invalid argument: disk limit cannot be negative"
        );
        assert_eq!(
            text("clean: {threshold_bytes: -1}"),
            "invalid argument: clean threshold cannot be negative"
        );
    }
}
