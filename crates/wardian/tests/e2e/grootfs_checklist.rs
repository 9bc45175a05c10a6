//! What the integration tests of GrootFS check, by number in the order of its suites, and which test here does the
//! same; or why none does. A number without a row, one with two, a name of a test that does not exist and a number of
//! a recorded run that does not exist fail the test.

use crate::grootfs_recorded::RUNS;

/// How many checks there are.
const CHECKS: usize = 155;

enum By {
    /// Tests in these files.
    Tests(&'static [&'static str]),
    /// Recorded runs on one store.
    OneStore(&'static [usize]),
    /// Recorded runs with a new store each.
    FreshStores(&'static [usize]),
    /// It does not apply.
    None(Why),
}

/// Why no test does the same.
#[derive(Clone, Copy)]
enum Why {
    /// There is no tardis; that its flag is accepted is in the recorded runs 174 and 175 on one store.
    Tardis,
    /// The store is on the file system of its directory: there is no file with XFS, no loop device, and no direct I/O to
    /// switch. That the flags are accepted: `a_store_without_a_mapping_is_roots_alone`.
    NoDisk,
}

use By::{FreshStores, OneStore, Tests};
use Why::{NoDisk, Tardis};

type Row = (&'static [usize], &'static str, By);

const CHECKLIST: &[Row] = &[
    // Create.
    (&[1], "owners are kept without a mapping", Tests(&["owners_are_those_of_the_image"])),
    (&[2], "a store that was not initialized is refused", OneStore(&[20])),
    (
        &[3, 4, 39, 58],
        "owners are mapped, of tars and layouts; the mapped root can list",
        Tests(&["owners_are_mapped_and_the_mapped_root_can_list"]),
    ),
    (
        &[5, 7, 20, 21],
        "limits with and without the image, by flag and by configuration",
        Tests(&["limits_bound_what_is_written_with_the_image_or_without_it"]),
    ),
    (&[6], "a negative limit", OneStore(&[44, 58])),
    (
        &[8, 10, 12, 32, 33, 48, 49],
        "a create cleans or does not, and leaves a layer that it is about to use",
        Tests(&["a_create_cleans_if_it_is_asked_to_and_there_is_enough"]),
    ),
    (&[9], "limits count for the threshold", Tests(&["what_is_promised_counts_for_the_threshold"])),
    (
        &[11, 36, 38, 55],
        "a changed tar is another layer, an unchanged one and a layout's are used again",
        Tests(&["a_layer_that_is_there_is_used_again"]),
    ),
    (&[13], "--with-clean and --without-clean", OneStore(&[57])),
    (
        &[14, 15, 16, 17],
        "ids that are taken, missing or no ids, and no arguments",
        OneStore(&[48, 49, 52, 53]),
    ),
    (&[18], "the configured store", OneStore(&[63, 64])),
    (
        &[22, 23, 24],
        "what is told of a root file system that is not mounted",
        Tests(&["the_caller_mounts_an_image_of_sixty_layers"]),
    ),
    (&[19, 25, 26, 27], "which tardis is run", By::None(Tardis)),
    // Tar files.
    (
        &[28, 29, 30, 31, 40, 41],
        "contents, modes, times and links, and two root file systems of one image",
        Tests(&["a_tar_is_unpacked_as_it_is"]),
    ),
    (&[34, 35], "a directory, and nothing, as a tar", OneStore(&[70, 71])),
    (&[37], "a name that leads out of the image", OneStore(&[78, 79])),
    // Layouts.
    (
        &[42, 44, 45, 46, 47, 60, 61, 62],
        "layers over layers, hard links, opaque directories, set-uid bits, read-only files and missing parents",
        Tests(&["layers_hide_and_replace_what_is_below"]),
    ),
    (&[43], "any user can run a program", Tests(&["any_user_can_run_a_program_of_the_image"])),
    (
        &[50, 51, 52],
        "layers above the limit, compressed and uncompressed",
        Tests(&["a_limit_below_the_layers_is_refused_before_or_while_they_are_unpacked"]),
    ),
    (&[53, 54], "sizes in the manifest that are too small or too large", OneStore(&[97, 98])),
    (&[56], "a damaged layer is not kept", Tests(&["a_layer_that_is_not_what_was_promised_is_not_kept"])),
    (&[57], "no layout", OneStore(&[105])),
    (&[59], "layers that are not compressed", FreshStores(&[29])),
    (&[63], "--skip-layer-validation", OneStore(&[116])),
    (&[64], "a layer behind mutual TLS", Tests(&["a_layer_on_a_server_is_fetched_with_a_certificate"])),
    // Images of registries: what a layout has as well.
    (
        &[68],
        "the variables of the configuration",
        Tests(&["variables_are_the_only_thing_that_is_told_of_the_configuration"]),
    ),
    (
        &[70, 71, 72, 73, 74, 92],
        "volumes, a link over a file, whiteouts, set-uid bits, read-only files",
        Tests(&["layers_hide_and_replace_what_is_below"]),
    ),
    (&[90], "no configuration at its path", OneStore(&[42])),
    // Images of registries.
    (
        &[65, 66, 67, 83, 88],
        "an image's content, any user, the path, the second create, and what is asked for",
        Tests(&["an_image_of_a_registry_becomes_a_root_file_system"]),
    ),
    (&[69], "memory for a big image", Tests(&["a_big_image_of_a_registry_takes_little_memory"])),
    (
        &[75, 76, 134],
        "a create cleans or does not, and clean takes what nobody has",
        Tests(&["layers_of_registries_are_cleaned_as_others"]),
    ),
    (&[77, 78, 79], "logins", Tests(&["a_private_image_takes_the_login_of_the_command_line"])),
    (
        &[80, 81, 82],
        "limits and the sum of the manifest",
        Tests(&["a_limit_counts_the_layers_of_the_manifest"]),
    ),
    (
        &[84, 93, 94, 95],
        "a damaged layer, validated or not, and a wrong diff id",
        Tests(&[
            "a_damaged_layer_of_a_registry_is_refused",
            "a_layer_that_is_not_what_was_promised_is_not_kept",
        ]),
    ),
    (&[85, 86], "schema 1, which is refused", Tests(&["schema_1_is_refused"])),
    (
        &[87, 89, 91],
        "certificates that are not trusted, insecure registries, and images that are not there",
        Tests(&["what_registries_refuse_is_told_in_grootfs_words"]),
    ),
    (&[98], "a slow registry beside a fast one", Tests(&["a_slow_registry_holds_up_nobody_else"])),
    // At once.
    (&[96], "twenty creates with a clean each", Tests(&["twenty_at_once_and_two_of_one_id"])),
    (
        &[97],
        "a hundred creates beside a hundred cleans",
        Tests(&["a_hundred_creates_beside_a_hundred_cleans"]),
    ),
    // Delete.
    (&[99, 102], "by id and by path", Tests(&["a_root_file_system_comes_and_goes"])),
    (
        &[100],
        "a closed directory of another user",
        Tests(&["files_of_others_in_a_root_file_system_go_with_it"]),
    ),
    (&[101, 120], "a missing store", Tests(&["of_a_missing_store_the_log_has_the_id"])),
    (&[103, 104, 105, 108], "paths and ids that are not there, and no id", OneStore(&[148, 150, 151, 152])),
    (
        &[106, 107],
        "mounts of somebody else",
        Tests(&["a_mount_of_somebody_else_makes_delete_fail_and_nothing_is_lost"]),
    ),
    // Delete-store.
    (&[109], "nothing is left", Tests(&["a_root_file_system_comes_and_goes"])),
    (&[110, 111], "what is not a store, and what is not there", OneStore(&[180, 182])),
    // Stats, list, capacity, metadata.
    (
        &[112],
        "figures of a limited root file system",
        Tests(&["stats_tell_the_kernels_figures_of_a_limited_one"]),
    ),
    (
        &[113, 115, 121, 122],
        "by path, without a limit, and lists of the configured store",
        Tests(&["figures_and_lists_are_those_of_the_configured_store"]),
    ),
    (&[114], "a tardis without the set-uid bit", By::None(Tardis)),
    (&[116, 117, 118, 119], "what is not there or outside, and no argument", OneStore(&[132, 134, 135, 136])),
    (&[123], "a list of a missing store", OneStore(&[21])),
    (&[124], "a list of an empty store", Tests(&["a_root_file_system_comes_and_goes"])),
    (&[125], "the configured capacity", OneStore(&[41])),
    (
        &[126, 127, 128],
        "sizes of layers need not be made again",
        Tests(&["what_is_on_disk_is_used_again_by_init_store_and_create"]),
    ),
    // Clean.
    (&[129, 131], "a missing store, a negative threshold", OneStore(&[22, 156])),
    (
        &[130, 132, 133],
        "unused layers, below the threshold and above it",
        Tests(&["clean_removes_what_nobody_has_once_it_is_more_than_the_threshold"]),
    ),
    // Init-store.
    (
        &[135, 136, 143],
        "mode, owner, and a second time",
        Tests(&["a_store_without_a_mapping_is_roots_alone"]),
    ),
    (&[137, 138, 139, 140, 142, 144, 145], "its disk", By::None(NoDisk)),
    (&[141], "its configured size", OneStore(&[41])),
    (&[146], "a mapping's owner", Tests(&["a_root_file_system_comes_and_goes"])),
    (&[147], "another user than root", OneStore(&[38])),
    // Logs and metrics.
    (&[148, 149], "errors on standard output, lines with their times", OneStore(&[164, 165])),
    (&[150, 151, 153], "levels and files of the log", Tests(&["the_log_goes_where_it_is_sent"])),
    (&[152], "a log file that cannot be written", OneStore(&[168])),
    (&[154], "the log of tardis", By::None(Tardis)),
    (&[155], "metrics; there are no locks to wait for", Tests(&["metrics_go_to_the_endpoint"])),
];

const SOURCES: [&str; 6] = [
    include_str!("grootfs.rs"),
    include_str!("grootfs_create.rs"),
    include_str!("grootfs_metrics.rs"),
    include_str!("grootfs_registry.rs"),
    include_str!("grootfs_store.rs"),
    include_str!("grootfs_unpacked.rs"),
];

#[test]
fn every_check_has_a_test_or_a_reason() {
    let mut found = [0; CHECKS];
    for (numbers, what, by) in CHECKLIST {
        assert!(!numbers.is_empty(), "{what}");
        numbers.iter().for_each(|number| found[number - 1] += 1);
        let recorded = |runs: &[usize], count: usize| {
            assert!(!runs.is_empty() && runs.iter().all(|run| (1..=count).contains(run)), "{what}: {runs:?}");
        };
        match by {
            Tests(names) => {
                for name in *names {
                    let test = format!("#[test]\nfn {name}() {{\n");
                    assert!(
                        SOURCES.iter().any(|source| source.contains(&test)),
                        "{what}: there is no test {name}"
                    );
                }
            }
            OneStore(runs) => recorded(runs, RUNS.0),
            FreshStores(runs) => recorded(runs, RUNS.1),
            By::None(Tardis | NoDisk) => {}
        }
    }
    let wrong: Vec<_> = found
        .iter()
        .enumerate()
        .filter(|(_, count)| **count != 1)
        .map(|(n, count)| (n + 1, *count))
        .collect();
    assert!(wrong.is_empty(), "checks and how many rows they have: {wrong:?}");
}
