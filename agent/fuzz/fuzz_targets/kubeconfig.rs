//! A kubeconfig, in YAML or JSON: never a panic, and what is refused has a reason.

#![no_main]

use libfuzzer_sys::fuzz_target;
use selvage::cluster::lease::kube::foreign::check_kubeconfig;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input)
        && let Err(reason) = check_kubeconfig(text)
    {
        assert!(!reason.is_empty());
    }
});
