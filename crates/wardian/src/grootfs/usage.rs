//! The commands with their flags, and the help texts, which are those of GrootFS 0.30.1.

use std::fmt::Write as _;

use super::flags::{Flag, Kind};

/// The version of GrootFS whose command line this is.
pub const VERSION: &str = "0.30.1";

/// A command of the command line.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// Its arguments, for the help.
    pub usage: &'static str,
    /// What it does, for its own help.
    pub description: &'static str,
    /// Its flags.
    pub flags: &'static [Flag],
    /// Whether the help leaves it out.
    pub hidden: bool,
}

const fn text(name: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Text, help }
}

const fn number(name: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Number, help }
}

const fn bool(name: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Bool, help }
}

const fn list(name: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::List, help }
}

const HELP: Flag = bool("help", "show help");

/// The flags before the command.
pub static GLOBAL: [Flag; 10] = [
    text("config", "Path to config file"),
    text("store", "Path to the store directory (default: \"/var/lib/grootfs\")"),
    text("log-level", "Set logging level <debug|info|error|fatal> (default: \"fatal\")"),
    text(
        "log-file",
        "File to write logs to. Using this option sets the log level to info if --log-level is not specified.",
    ),
    text("tardis-bin", "Path to tardis bin. (If not provided will use $PATH) (default: \"tardis\")"),
    text("newuidmap-bin", "Path to newuidmap bin. (If not provided will use $PATH) (default: \"newuidmap\")"),
    text("newgidmap-bin", "Path to newgidmap bin. (If not provided will use $PATH) (default: \"newgidmap\")"),
    text("metron-endpoint", "Metron endpoint used to send metrics"),
    HELP,
    bool("version", "print the version"),
];

static INIT: [Flag; 5] = [
    list("uid-mapping", "UID mapping for image translation, e.g.: <Namespace UID>:<Host UID>:<Size>"),
    list("gid-mapping", "GID mapping for image translation, e.g.: <Namespace GID>:<Host GID>:<Size>"),
    number(
        "store-size-bytes",
        "Creates a new filesystem of the given size and mounts it to the given Store Directory",
    ),
    bool("with-direct-io", "Enable direct IO on the loopback device associated with the backing store"),
    HELP,
];

static CREATE: [Flag; 13] = [
    number("disk-limit-size-bytes", "Inclusive disk limit (i.e: includes all layers in the filesystem)"),
    list("insecure-registry", "Whitelist a private registry"),
    bool("exclude-image-from-quota", "Set disk limit to be exclusive (i.e.: excluding image layers)"),
    bool(
        "skip-layer-validation",
        "Do not validate checksums and sizes of image layers. (Can only be used with oci:/// protocol images.)",
    ),
    bool("with-clean", "Clean up unused layers before creating rootfs"),
    bool("without-clean", "Do NOT clean up unused layers before creating rootfs"),
    number("threshold-bytes", "Disk usage of the store directory at which cleanup should trigger"),
    bool("with-mount", "Mount the root filesystem after creation. This may require root privileges."),
    bool("without-mount", "Do not mount the root filesystem."),
    text("username", "Username to authenticate in image registry"),
    text("password", "Password to authenticate in image registry"),
    text("clean-log-file", "File to write the clean-on-create logs to. If not specified, stderr is used"),
    HELP,
];

static CLEAN: [Flag; 2] =
    [number("threshold-bytes", "Disk usage of the store directory at which cleanup should trigger"), HELP];

static ONLY_HELP: [Flag; 1] = [HELP];

/// The commands, in the order of the help.
pub static COMMANDS: [Command; 9] = [
    Command {
        name: "init-store",
        usage: "init-store --store <path>",
        description: "Initialize a Store Directory",
        flags: &INIT,
        hidden: false,
    },
    Command {
        name: "delete-store",
        usage: "delete-store --store <path>",
        description: "Deletes the given store from the system",
        flags: &ONLY_HELP,
        hidden: false,
    },
    Command {
        name: "create",
        usage: "create [options] <image> <id>",
        description: "Creates a root filesystem for the provided image.",
        flags: &CREATE,
        hidden: false,
    },
    Command {
        name: "delete",
        usage: "delete <id|image path>",
        description: "Deletes a container image",
        flags: &ONLY_HELP,
        hidden: false,
    },
    Command {
        name: "stats",
        usage: "stats [options] <id|image path>",
        description: "Return filesystem stats",
        flags: &ONLY_HELP,
        hidden: false,
    },
    Command {
        name: "clean",
        usage: "clean",
        description: "Cleans up unused layers",
        flags: &CLEAN,
        hidden: false,
    },
    Command {
        name: "list",
        usage: "list",
        description: "Lists images in store",
        flags: &ONLY_HELP,
        hidden: false,
    },
    Command {
        name: "capacity",
        usage: "capacity",
        description: "Return filesystem capacity",
        flags: &ONLY_HELP,
        hidden: false,
    },
    Command {
        name: "generate-volume-size-metadata",
        usage: "",
        description: "",
        flags: &ONLY_HELP,
        hidden: true,
    },
];

/// Finds a command by its name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// Adds a table of two columns.
fn table(out: &mut String, title: &str, rows: &[(String, String)]) {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 2;
    let _ = writeln!(out, "\n{title}:");
    for (label, help) in rows {
        let _ = writeln!(out, "   {label:width$}{help}");
    }
}

fn rows(flags: &[Flag]) -> Vec<(String, String)> {
    let row = |flag: &Flag| {
        let Flag { name, kind, help } = flag;
        let (label, default) = match kind {
            Kind::Bool if *name == "help" => ("--help, -h".to_owned(), ""),
            Kind::Bool if *name == "version" => ("--version, -v".to_owned(), ""),
            Kind::Bool => (format!("--{name}"), " (default: false)"),
            Kind::Text if *name == "log-file" => ("--log-file info".to_owned(), ""),
            Kind::Text => (format!("--{name} value"), ""),
            Kind::Number => (format!("--{name} value"), " (default: 0)"),
            Kind::List => (format!("--{name} value [ --{name} value ]"), ""),
        };
        (label, format!("{help}{default}"))
    };
    flags.iter().map(row).collect()
}

/// The help of the whole command line.
pub fn whole() -> String {
    let mut out = format!(
        "NAME:\n   grootfs - I am Groot!\n\nUSAGE:\n   grootfs [global options] command [command options]\n\n\
         VERSION:\n   {VERSION}\n"
    );
    let shown = COMMANDS.iter().filter(|command| !command.hidden);
    let mut commands: Vec<_> =
        shown.map(|command| (command.name.to_owned(), command.usage.to_owned())).collect();
    commands.push(("help, h".into(), "Shows a list of commands or help for one command".into()));
    table(&mut out, "COMMANDS", &commands);
    table(&mut out, "GLOBAL OPTIONS", &rows(&GLOBAL));
    out
}

/// The help of a command; after a wrong flag it names the command `help` too.
pub fn of(command: &Command, after_mistake: bool) -> String {
    let Command { name, usage, description, flags, .. } = command;
    let usage = if usage.is_empty() { String::new() } else { format!(" - {usage}") };
    let mut out = format!("NAME:\n   grootfs {name}{usage}\n\nUSAGE:\n   grootfs {name} [command options]\n");
    if !description.is_empty() {
        let _ = write!(out, "\nDESCRIPTION:\n   {description}\n");
    }
    if after_mistake {
        let help = ("help, h".to_owned(), "Shows a list of commands or help for one command".to_owned());
        table(&mut out, "COMMANDS", &[help]);
    }
    table(&mut out, "OPTIONS", &rows(flags));
    out
}
