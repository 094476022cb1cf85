//! The CPU device passes the conformance cases on every instruction set that this machine has, with and without the
//! recording device between.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use wardrobe_device::conformance::{Promises, Subject, fingerprint};
use wardrobe_device::conformance_suite;
use wardrobe_device::cpu::{CpuDevice, CpuOptions, Isa};
use wardrobe_device::fake_async::FakeAsyncDevice;

fn subject(isa: Isa, threads: usize) -> Subject {
    let device =
        CpuDevice::new(CpuOptions { threads: Some(threads), isa: Some(isa), ..Default::default() }).unwrap();
    let promises = Promises { activation_steps: Some(2032), tolerance: 1e-5, batch_invariant: true };
    Subject { device: Arc::new(device), promises }
}

fn recording(subject: Subject) -> Subject {
    Subject { device: Arc::new(FakeAsyncDevice::new(subject.device)), ..subject }
}

mod plain {
    use super::*;
    conformance_suite!(Isa::available().into_iter().map(|isa| subject(isa, 2)));
}

mod recorded {
    use super::*;
    conformance_suite!([recording(subject(Isa::best(), 1))]);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in Isa::available() {
        let one = fingerprint(&subject(isa, 1));
        for threads in [2, 3] {
            assert!(one == fingerprint(&subject(isa, threads)), "{isa} with {threads} threads");
        }
    }
}

#[test]
fn tiles_give_the_bits_of_vectors() {
    let all = Isa::available();
    if !all.contains(&Isa::Amx) {
        eprintln!("SKIPPED: this machine has no AMX");
        return;
    }
    assert!(fingerprint(&subject(Isa::Amx, 1)) == fingerprint(&subject(Isa::Avx512, 1)));
}

#[test]
fn instruction_sets_with_fused_multiply_add_agree() {
    let fused: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa != Isa::Portable).collect();
    if let [first, others @ ..] = &fused[..] {
        let expected = fingerprint(&subject(*first, 2));
        for isa in others {
            assert!(expected == fingerprint(&subject(*isa, 2)), "{first} and {isa}");
        }
    }
    if fused.len() < 2 {
        println!("SKIPPED: this machine has {} such instruction sets", fused.len());
    }
}
