//! Holds the contract still: whatever the proto files say must be what
//! `contract.txt` lists, so that no edit changes the wire by accident.
//!
//! For an update, see `examples/contract.rs`.

mod lines;

use prost_reflect::DescriptorPool;
use std::collections::BTreeSet;

#[test]
fn contract_is_the_one_listed() {
    let pool = DescriptorPool::decode(cri_api::DESCRIPTORS).expect("our descriptors");
    let ours = lines::lines(&pool, "runtime.v1");
    let ours: BTreeSet<&str> = ours.iter().map(String::as_str).collect();
    let listed: BTreeSet<&str> = include_str!("contract.txt").lines().collect();
    let lost: Vec<_> = listed.difference(&ours).collect();
    let new: Vec<_> = ours.difference(&listed).collect();
    assert!(
        lost.is_empty() && new.is_empty(),
        "listed but not in proto/cri: {lost:#?}\nin proto/cri but not listed: {new:#?}"
    );
}

#[test]
fn every_call_is_there() {
    let pool = DescriptorPool::decode(cri_api::DESCRIPTORS).expect("our descriptors");
    let calls = |name| {
        pool.get_service_by_name(name)
            .expect("a service of the contract")
            .methods()
            .count()
    };
    assert_eq!(calls("runtime.v1.RuntimeService"), 37);
    assert_eq!(calls("runtime.v1.ImageService"), 6);
}
