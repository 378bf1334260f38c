//! Labs on one machine share nothing that the end of one would take from another.

use karst_test_node::Lab;

#[test]
fn a_lab_that_goes_takes_nothing_from_another() {
    let stays = Lab::up("tests/fixtures/pair");
    let goes = Lab::up("tests/fixtures/pair");
    drop(goes);
    let page = ["curl", "-s", "--max-time", "10", "http://server.meshed/"];
    stays.exec("meshed/client", &page).success();
    assert_eq!(
        stays.status()["pods"].as_array().map(Vec::len),
        Some(6),
        "its daemon and its state are there"
    );
    // Its agents still take what changes.
    stays.edit(
        "mesh.yaml",
        "istio.io/dataplane-mode: ambient",
        "istio.io/dataplane-mode: none",
    );
    stays.wait_enrolled();
}
