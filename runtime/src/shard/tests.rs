//! That stage 3 really frees.

use super::*;
use crate::comm::Single;
use crate::model::{ModelConfig, Transformer};
use crate::torch::autograd_grad;
use std::path::PathBuf;
use zerofold_checkpoint::Weights;
use zerofold_configs::{Stage, UnitPolicy};
use zerofold_plan::{Mesh, ModelUnits, SegmentKind};

fn loaded(stage: Stage, compute: Kind) -> (Transformer, Shards) {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/models/tiny-llama"));
    let model = Transformer::new(ModelConfig::read(&directory).unwrap(), compute, Device::Cpu).unwrap();
    let units = ModelUnits::new(&model.config, UnitPolicy::Blocks).units;
    let layout = Layout::new(&units, Mesh::new(1, 1).unwrap()).unwrap();
    let kinds = Kinds { compute, master: Kind::Float, reduce: Kind::Float, accumulate: Kind::Float };
    let options =
        ShardOptions { sharding: Sharding::of(stage), kinds, offload: Offload::No, mixes: false, device: Device::Cpu };
    let mut shards = Shards::new(layout, &options, Rc::new(Single::new(Device::Cpu).unwrap())).unwrap();
    shards.load(&Weights::of_model(&directory).unwrap()).unwrap();
    (model, shards)
}

fn has_nan(tensor: &Tensor) -> bool {
    tensor.isnan().any().int64_value(&[]) == 1
}

#[test]
fn a_released_unit_reads_as_nan() {
    for compute in [Kind::Float, Kind::BFloat16] {
        let (_, mut shards) = loaded(Stage::Three, compute);
        let weight = shards.units[1].leaves()[0].shallow_clone();
        assert!(weight.isnan().all().int64_value(&[]) == 1);
        shards.gather(1).unwrap();
        assert!(!has_nan(&weight));
        shards.release(1).unwrap();
        assert!(weight.isnan().all().int64_value(&[]) == 1);
    }
}

#[test]
fn a_unit_is_never_gathered_into_a_buffer_in_use() {
    let (_, mut shards) = loaded(Stage::Three, Kind::Float);
    shards.gather(1).unwrap();
    shards.gather(2).unwrap();
    let error = shards.gather(3).unwrap_err();
    assert!(matches!(error, ShardError::NoBuffer(name) if name.contains("layer 2")));
}

/// Backward must read the weights through the flat parameter. Were a copy of a weight saved in forward, freeing would free
/// nothing: so each weight in turn is spoilt between forward and backward, and the gradient has to notice.
#[test]
fn backward_sees_every_weight_through_the_flat_parameter() {
    let _alone = crate::torch::generator_of_this_test(8);
    for compute in [Kind::Float, Kind::BFloat16] {
        let (model, mut shards) = loaded(Stage::Three, compute);
        shards.gather(1).unwrap();
        let width = model.config.hidden_size as i64;
        let (numel, places) = {
            let layout = &shards.units[1].layout;
            (layout.numel, layout.leaves.iter().map(|leaf| (leaf.begin, leaf.end)).collect::<Vec<_>>())
        };
        let whole = shards.buffers.tensor(0).narrow(0, 0, numel as i64).copy();
        for (index, (begin, end)) in places.into_iter().enumerate() {
            let input = Tensor::randn([2, 9, width], (compute, Device::Cpu)).set_requires_grad(true);
            // SAFETY: `whole` and `spoilt` outlive the passes that read them.
            unsafe { shards.units[1].point_at(whole.data_ptr()).unwrap() };
            let output =
                tch::with_grad(|| model.segment(SegmentKind::Block(0), shards.units[1].leaves(), &input, None))
                    .unwrap();
            let spoilt = whole.copy();
            let _filled = spoilt.narrow(0, begin as i64, (end - begin) as i64).fill_(f64::NAN);
            // SAFETY: as above.
            unsafe { shards.units[1].point_at(spoilt.data_ptr()).unwrap() };
            let seed = output.ones_like();
            let gradients = autograd_grad(&[&output], &[&seed], &[&input]).unwrap();
            assert!(has_nan(gradients[0].as_ref().unwrap()), "leaf {index}: backward did not read the spoilt weight");
        }
        shards.release(1).unwrap();
    }
}

#[test]
fn gather_buffers_exist_at_stage_three_only() {
    let (_, shards) = loaded(Stage::Two, Kind::BFloat16);
    assert_eq!(shards.gather_buffer_bytes(), 0);
    let (_, shards) = loaded(Stage::Three, Kind::BFloat16);
    let largest = shards.layout().units.iter().map(|unit| unit.numel).max().unwrap();
    assert_eq!(shards.gather_buffer_bytes(), 2 * 2 * largest);
}

/// Of a unit's gradients and values, the first in the order of the files that is not finite; a closed gradient leaves its
/// place free for the next.
#[test]
fn the_first_parameter_that_is_not_finite_is_told() {
    for stage in [Stage::Zero, Stage::Three] {
        let (_, mut shards) = loaded(stage, Kind::Float);
        for (unit, spoilt) in [(1, Some(3)), (2, None), (3, Some(0)), (1, Some(5))] {
            shards.begin_window().unwrap();
            shards.gather(unit).unwrap();
            shards.begin_gradient(unit).unwrap();
            let parameters: Vec<_> = shards.layout().units[unit].parameters().cloned().collect();
            if let Some(spoilt) = spoilt {
                let at = parameters[spoilt].end as i64 - 1;
                let leaves = shards.layout().units[unit].leaves.clone();
                let leaf = leaves.iter().position(|leaf| leaf.begin as i64 <= at && at < leaf.end as i64).unwrap();
                let flat = shards.leaf_gradient(unit, leaf).unwrap().view([-1]);
                let _spoilt = flat.narrow(0, at - leaves[leaf].begin as i64, 1).fill_(f64::INFINITY);
            }
            let leaves: Vec<usize> = (0..shards.layout().units[unit].leaves.len()).collect();
            assert_eq!(shards.inspect_gradient(unit, &leaves).unwrap(), spoilt, "stage {stage}, unit {unit}");
            assert_eq!(shards.inspect_parameters(unit).unwrap(), None);
            shards.release(unit).unwrap();
        }
    }
}
