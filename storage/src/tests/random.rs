//! Lives at random, with kills and power cuts in them, against the model.

use proptest::prelude::*;

use super::history::{Life, Model, Step, block_on};
use crate::simulated::{Simulated, Survival};
use crate::{Kind, Options};

fn survival() -> impl Strategy<Value = Survival> {
    prop_oneof![
        Just(Survival::Nothing),
        Just(Survival::Everything),
        Just(Survival::Names),
        Just(Survival::Content),
        any::<u64>().prop_map(Survival::Prefix),
        (any::<u64>(), prop_oneof![Just(512usize), Just(4096)])
            .prop_map(|(seed, sector)| Survival::Any { seed, sector }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![4 => Just(Kind::Data), 1 => Just(Kind::Pending), 1 => Just(Kind::Control)];
    let state = proptest::option::weighted(0.3, 0..8u8);
    let append = (1..5usize, 0..900usize, any::<bool>(), kind, state);
    prop_oneof![
        8 => append.prop_map(|(frames, size, each, kind, state)| Step::Append { frames, size, each, kind, state }),
        4 => (2..8usize).prop_map(Step::Group),
        1 => (0..8u8).prop_map(Step::State),
        2 => (1..4usize, 0..900usize).prop_map(|(frames, size)| Step::Begin(frames, size)),
        1 => Just(Step::Abort),
        1 => Just(Step::Trim),
        1 => Just(Step::Release),
        1 => Just(Step::ReleaseAndTrim),
        1 => Just(Step::Close),
        2 => Just(Step::Kill),
        3 => survival().prop_map(Step::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_holds_what_its_model_holds(
        steps in proptest::collection::vec(step(), 1..40),
        segment_bytes in prop_oneof![Just(400u64), Just(3000), Just(20_000)],
        first in prop_oneof![Just(0u64), Just(1_000_000)],
        keep in proptest::option::of(0..9000u64),
        ahead in prop_oneof![Just(0u64), Just(100), Just(1500), Just(1 << 20)],
    ) {
        let first_offset = crate::Offset(first);
        let mut options = Options { segment_bytes, first_offset, ahead, ..Options::default() };
        options.retain.bytes = keep;
        let mut life = Life::new(Simulated::new(), Model::default(), options);
        let lived = block_on(async {
            life.live(&steps).await?;
            life.live(&[Step::Kill, Step::Cut(Survival::Nothing)]).await
        });
        prop_assert!(lived.is_ok(), "{}", lived.unwrap_err());
        prop_assert!(life.failure.is_none(), "{:?}", life.failure);
    }
}
