//! The plan's numbers by hand, for models small enough.

use super::*;
use zerofold_configs::{ReshardAfterForward, UnitPolicy};

fn inputs(model: &ModelConfig, world_size: usize, stage: Stage) -> PlanInputs<'_> {
    PlanInputs {
        model,
        world_size,
        sharding: Sharding::of(stage),
        types: ElementTypes::of(ElementType::Bfloat16),
        per_device_batch: 1,
        length: 512,
        longest_document: None,
        supervised: None,
        accumulation: 1,
        gradient_checkpointing: true,
        gradient_checkpointing_every: 1,
        offload_optimizer: false,
        device: PlannedDevice::Gpu,
        receives: false,
        copies: false,
        training: None,
    }
}

fn seven() -> ModelConfig {
    ModelConfig::published("llama-7b").unwrap()
}

fn layout_of(inputs: &PlanInputs<'_>) -> Layout {
    let mesh = Mesh::new(inputs.world_size, inputs.sharding.replicas as usize).unwrap();
    Layout::new(&ModelUnits::new(inputs.model, inputs.sharding.units).units, mesh).unwrap()
}

#[test]
fn gather_buffers_are_two_of_the_largest_unit() {
    let model = seven();
    let job = inputs(&model, 8, Stage::Three);
    let layout = layout_of(&job);
    let block = layout.units[1].numel as u64;
    assert!(block > layout.units[0].numel as u64, "a block is larger than the embedding");
    let plan_of = |reshard| {
        let sharding = Sharding { reshard_after_forward: reshard, ..job.sharding };
        plan(&PlanInputs { sharding, ..job }).unwrap()
    };
    let always = plan_of(ReshardAfterForward::Always(true));
    assert_eq!((always.gather_buffers, always.stays_gathered), (2 * 2 * block, 0));
    assert_eq!(always.gradient_buffers, 2 * 4 * block);
    assert_eq!(always.reduce_buffers, 0);
    let over_gloo = plan(&PlanInputs { receives: true, ..job }).unwrap();
    assert_eq!(over_gloo.reduce_buffers, 2 * 4 * block / 8 * 7);
    assert_eq!(over_gloo.total - always.total, over_gloo.reduce_buffers);
    let never = plan_of(ReshardAfterForward::Always(false));
    assert_eq!(never.gather_buffers, 2 * layout.numel() as u64);
    let group = plan_of(ReshardAfterForward::Group(4));
    assert_eq!(group.gather_buffers, 2 * 2 * block + 2 * layout.numel() as u64 / 4);
    for stage in [Stage::Zero, Stage::One, Stage::Two] {
        let plan = plan(&job.at(stage)).unwrap();
        assert_eq!(plan.all_gather_buffers(), 0);
        assert_eq!(plan.gradient_buffers > 0, stage == Stage::Two);
    }
}

#[test]
fn a_tied_embedding_has_buffers_of_its_own() {
    let model = ModelConfig { tie_word_embeddings: true, ..seven() };
    let job = inputs(&model, 4, Stage::Three);
    let (layout, plan) = (layout_of(&job), plan(&job).unwrap());
    let (embedding, block) = (layout.units[0].numel as u64, layout.units[1].numel as u64);
    assert_eq!((plan.gather_buffers, plan.stays_gathered), (4 * block, 2 * embedding));
    assert_eq!(plan.gradient_buffers, 8 * block + 4 * embedding);
}

#[test]
fn one_rank_sends_and_receives_nothing() {
    let model = seven();
    for plan in plan_all_stages(&PlanInputs { receives: true, ..inputs(&model, 1, Stage::Zero) }).unwrap() {
        assert_eq!((plan.sent_bytes_per_step, plan.reduce_buffers), (0, 0));
    }
}

#[test]
fn sent_bytes_follow_the_table() {
    let model = seven();
    let (world, accumulation) = (8, 4);
    let job = PlanInputs { accumulation, ..inputs(&model, world, Stage::Zero) };
    let layout = layout_of(&job);
    let share = |elements: usize| elements as u64 / 8 * 7;
    let all = share(layout.numel());
    let sent = |job: PlanInputs<'_>| plan(&job).unwrap().sent_bytes_per_step;
    assert_eq!(sent(job), all * (4 + 4));
    assert_eq!(sent(job.at(Stage::One)), all * (4 + 2));
    assert_eq!(sent(job.at(Stage::Two)), all * (4 * 4 + 2));
    // Of 34 units, forward gathers all and backward all but the embedding and the two used last. After the first
    // micro-batch the buffers hold blocks 1 and 0, and the embedding pushes block 1 out.
    let (embedding, block) = (share(layout.units[0].numel), share(layout.units[1].numel));
    let head = share(layout.units[33].numel);
    let first = 2 * all - embedding - head - block;
    let gathered = first + 3 * (first - block);
    assert_eq!(sent(job.at(Stage::Three)), 4 * 4 * all + 2 * gathered);
    let kept = Sharding { reshard_after_forward: ReshardAfterForward::Always(false), ..Sharding::of(Stage::Three) };
    assert_eq!(sent(PlanInputs { sharding: kept, ..job }), 4 * 4 * all + 2 * all);
    let narrow = ElementTypes { reduce: ElementType::Bfloat16, ..job.types };
    assert_eq!(sent(PlanInputs { types: narrow, ..job.at(Stage::Two) }), all * (4 * 2 + 2));
    let hybrid = Sharding { replicas: 2, ..Sharding::of(Stage::Two) };
    let within = layout.numel() as u64 / 4 * 3;
    let across = 2 * 4 * (layout.numel() as u64 / 4 / 2);
    assert_eq!(sent(PlanInputs { sharding: hybrid, ..job }), within * (4 * 4 + 2) + across);
}

#[test]
fn offloaded_state_lies_on_disk() {
    let model = seven();
    let job = inputs(&model, 8, Stage::Three);
    let (with, without) = (plan(&PlanInputs { offload_optimizer: true, ..job }).unwrap(), plan(&job).unwrap());
    assert_eq!(with.offloaded_disk, 12 * layout_of(&job).shard_numel() as u64);
    assert_eq!(with.total + with.offloaded_disk, without.total);
    assert_eq!(with.checkpoint_disk, 12 * layout_of(&job).numel() as u64);
    assert_eq!(with.save_copy, 12 * layout_of(&job).shard_numel() as u64);
    // In float32 the masters are the parameters: whole ones stay, the shards of stage 3 do not.
    let float32 = PlanInputs { types: ElementTypes::of(ElementType::Float32), offload_optimizer: true, ..job };
    for (stage, bytes) in [(Stage::One, 8), (Stage::Three, 12)] {
        let planned = plan(&float32.at(stage)).unwrap();
        assert_eq!(planned.offloaded_disk, bytes * layout_of(&job).shard_numel() as u64, "stage {stage}");
    }
}

#[test]
fn what_holds_against_forgetting_is_counted() {
    let model = seven();
    let training = |keys: &[(&str, &str)]| {
        let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o"), ("ewc_dataset", "e")];
        let flags = required.iter().chain(keys).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let inputs = zerofold_configs::Inputs { flags: flags.collect(), ..Default::default() };
        zerofold_configs::resolve(&inputs).unwrap().training
    };
    let (plain, ewc, mixout) =
        (training(&[]), training(&[("ewc_lambda", "1")]), training(&[("mixout_probability", "0.5")]));
    for (types, mixed) in [(ElementType::Bfloat16, [0, 0, 0]), (ElementType::Float32, [4, 4, 0])] {
        for (stage, mixed) in [Stage::Zero, Stage::Two, Stage::Three].into_iter().zip(mixed) {
            let job = PlanInputs { types: ElementTypes::of(types), ..inputs(&model, 8, stage) };
            let (full, shard) = (layout_of(&job).numel() as u64, layout_of(&job).shard_numel() as u64);
            let of = |training: &Training| plan(&PlanInputs { training: Some(training), ..job }).unwrap();
            let (plain, ewc, mixout) = (of(&plain), of(&ewc), of(&mixout));
            // Float32 of the pretrained weights and of their Fisher information, which is made after loading.
            assert_eq!(ewc.total - plain.total, 8 * shard, "stage {stage}");
            assert_eq!(ewc.loading_peak - plain.loading_peak, 4 * shard, "stage {stage}");
            assert_eq!(ewc.checkpoint_disk - plain.checkpoint_disk, 4 * full, "stage {stage}");
            let masters = mixed * if stage == Stage::Zero { full } else { shard };
            assert_eq!(mixout.total - plain.total, 4 * shard + masters, "stage {stage}");
            let parameters = if stage == Stage::Zero { types.bytes() as u64 * full / 8 * 7 } else { 0 };
            assert_eq!(mixout.sent_bytes_per_step - plain.sent_bytes_per_step, parameters, "stage {stage}");
        }
    }
}

#[test]
fn loading_takes_state_and_buffers_and_a_cast_where_masters_are_not_float32() {
    let model = seven();
    let job = inputs(&model, 8, Stage::Three);
    let beside = |job: PlanInputs<'_>| {
        let plan = plan(&job).unwrap();
        plan.loading_peak - plan.state.total() as u64 - plan.all_gather_buffers() - plan.gradient_buffers
    };
    let all = ElementType::Bfloat16;
    let pure = PlanInputs { types: ElementTypes { compute: all, master: all, reduce: all, accumulate: all }, ..job };
    assert_eq!((beside(job), beside(pure)), (0, 1 << 20));
    // A model whose shards are shorter than a chunk casts no more than a shard.
    let model =
        ModelConfig { hidden_size: 32, intermediate_size: 64, vocab_size: 320, num_hidden_layers: 1, ..seven() };
    let toy = PlanInputs { model: &model, ..pure };
    let longest = layout_of(&toy).units.iter().map(|unit| unit.shard_numel).max().unwrap();
    assert_eq!(beside(toy), 4 * longest as u64);
}

/// 2 of the largest shards of 12 bytes a parameter's state; by hand, of two ranks.
#[test]
fn stage_0_copies_what_others_read() {
    let model = seven();
    let job = PlanInputs { copies: true, ..inputs(&model, 2, Stage::Zero) };
    let longest = layout_of(&job).units.iter().map(|unit| unit.shard_numel).max().unwrap() as u64;
    let without = PlanInputs { copies: false, ..job };
    let [with, without] = [job, without].map(|job| plan(&job).unwrap());
    assert_eq!(with.reduce_buffers, 2 * 4 * longest);
    assert_eq!(with.loading_peak - without.loading_peak, 2 * 4 * longest);
    let sharded = job.at(Stage::One);
    assert_eq!(plan(&sharded).unwrap(), plan(&PlanInputs { copies: false, ..sharded }).unwrap());
    assert_eq!(plan(&PlanInputs { world_size: 1, ..job }).unwrap().reduce_buffers, 0);
}

#[test]
fn totals_fall_from_stage_to_stage_and_hybrid_is_a_fifth_row() {
    let model = seven();
    let job = inputs(&model, 8, Stage::Three);
    let plans = plan_all_stages(&job).unwrap();
    assert!(plans.windows(2).all(|pair| pair[0].total > pair[1].total), "{plans:?}");
    let hybrid = Sharding { replicas: 2, ..job.sharding };
    let plans = plan_all_stages(&PlanInputs { sharding: hybrid, ..job }).unwrap();
    assert_eq!(plans.iter().map(|plan| plan.replicas).collect::<Vec<_>>(), [1, 1, 1, 1, 2]);
    assert!(plans[4].total > plans[3].total);
    let three = Sharding { replicas: 3, ..job.sharding };
    assert!(plan_all_stages(&PlanInputs { sharding: three, ..job }).is_err());
}

#[test]
fn the_whole_model_as_one_unit_and_absurd_sizes_have_plans() {
    let model = seven();
    let whole = Sharding { units: UnitPolicy::Whole, ..Sharding::of(Stage::Three) };
    let job = PlanInputs { sharding: whole, ..inputs(&model, 8, Stage::Three) };
    let (one, layout) = (plan(&job).unwrap(), layout_of(&job));
    assert_eq!((one.gather_buffers, one.stays_gathered), (0, 2 * layout.numel() as u64));
    let absurd = PlanInputs { per_device_batch: 1 << 31, length: 1 << 31, ..job };
    assert!(plan(&absurd).unwrap().total > one.total);
}

#[test]
fn the_simplest_stage_that_fits_is_recommended() {
    let model = seven();
    let gibibytes = |count: u64| count << 30;
    let job = inputs(&model, 8, Stage::Three);
    let stage = |capacity| match recommend(&job, capacity).unwrap() {
        Advice::Stage(fit) => Some(fit.stage),
        Advice::Nothing { .. } => None,
    };
    assert_eq!(stage(gibibytes(200)), Some(Stage::Zero));
    assert_eq!(stage(gibibytes(80)), Some(Stage::One));
    assert_eq!(stage(gibibytes(40)), Some(Stage::Two));
    assert_eq!(stage(gibibytes(24)), Some(Stage::Three));
    assert_eq!(stage(gibibytes(12)), None);
}

/// The levers that are tried on a job, which fits nowhere in so many GiB.
fn levers(job: &PlanInputs<'_>, gibibytes: u64) -> Vec<Tried> {
    match recommend(job, gibibytes << 30).unwrap() {
        Advice::Nothing { least, levers } if !least.fits => levers,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_lever_is_told_alone_and_with_those_before() {
    let model = seven();
    let job = inputs(&model, 8, Stage::Three);
    let levers = levers(&job, 12);
    let names: Vec<Lever> = levers.iter().map(|tried| tried.lever).collect();
    let expected = [Lever::Bfloat16Masters, Lever::Ranks(16), Lever::OffloadOptimizer, Lever::MaxLength(256)];
    assert_eq!(names, expected, "{levers:?}");
    assert_eq!(levers[0].alone, levers[0].together);
    let total = |inputs: PlanInputs<'_>| plan(&inputs.at(Stage::Three)).unwrap().total;
    let all = ElementType::Bfloat16;
    let pure = PlanInputs { types: ElementTypes { compute: all, master: all, reduce: all, accumulate: all }, ..job };
    let expected = [
        (job, pure),
        (PlanInputs { world_size: 16, ..job }, PlanInputs { world_size: 16, ..pure }),
        (PlanInputs { offload_optimizer: true, ..job }, PlanInputs { offload_optimizer: true, ..pure }),
        // More ranks are not among those before.
        (PlanInputs { length: 256, ..job }, PlanInputs { length: 256, offload_optimizer: true, ..pure }),
    ];
    for (tried, (alone, together)) in levers.iter().zip(expected).skip(1) {
        // A lower stage that fits is told in place of stage 3.
        for (told, job) in [(tried.alone, alone), (tried.together, together)] {
            assert!(told.stage < Stage::Three || told.total == total(job), "{tried:?}");
            assert_eq!(told.fits, total(job) <= usable(12 << 30), "{tried:?}");
        }
    }
    let kept = Sharding { reshard_after_forward: ReshardAfterForward::Always(false), ..job.sharding };
    let release = recommend(&PlanInputs { sharding: kept, ..job }, 24 << 30).unwrap();
    let Advice::Nothing { levers, .. } = release else { panic!("{release:?}") };
    assert!(levers[0].lever == Lever::ReleaseParameters && levers[0].alone.fits, "{levers:?}");
}

#[test]
fn one_copy_comes_first_and_offloaded_state_is_sharded() {
    let model = seven();
    let job = inputs(&model, 8, Stage::Three);
    let two = PlanInputs { sharding: Sharding { replicas: 2, ..job.sharding }, ..job };
    let found = levers(&two, 12);
    assert_eq!(found[0].lever, Lever::OneCopy);
    assert_eq!(found[0].alone.total, plan(&job).unwrap().total);
    // Alone, the other changes leave the copies; together, they follow the first.
    let ranks = found.iter().find(|tried| tried.lever == Lever::Ranks(16)).unwrap();
    assert_eq!(ranks.alone.total, plan(&PlanInputs { world_size: 16, ..two }).unwrap().total);
    assert!(ranks.together.total < ranks.alone.total, "{ranks:?}");
    // Stage 0 would fit 18 bytes a parameter, but has nothing to offload.
    let offloaded = PlanInputs { offload_optimizer: true, ..job };
    let Advice::Stage(fit) = recommend(&offloaded, 200 << 30).unwrap() else { panic!() };
    assert_eq!(fit.stage, Stage::One);
}

#[test]
fn where_nothing_is_enough_the_farthest_that_was_tried_is_told() {
    let model = seven();
    let found = levers(&inputs(&model, 8, Stage::Three), 1);
    let of = |wanted: fn(&Lever) -> bool| found.iter().find(|tried| wanted(&tried.lever)).unwrap();
    let ranks = of(|lever| matches!(lever, Lever::Ranks(_)));
    assert_eq!((ranks.lever, ranks.together.fits), (Lever::Ranks(4096), false));
    assert!(ranks.together.total > usable(1 << 30) && ranks.together.total < ranks.alone.total, "{ranks:?}");
    let length = of(|lever| matches!(lever, Lever::MaxLength(_)));
    assert_eq!((length.lever, length.together.fits), (Lever::MaxLength(128), false));
    // Beyond the most, twice as many are tried; rows that are short already are not cut.
    let found = levers(&PlanInputs { length: 200, ..inputs(&model, 5000, Stage::Three) }, 1);
    assert!(found.iter().any(|tried| tried.lever == Lever::Ranks(10_000)), "{found:?}");
    assert!(!found.iter().any(|tried| matches!(tried.lever, Lever::MaxLength(_))), "{found:?}");
}

#[test]
fn long_rows_are_halved_until_they_fit() {
    let model = seven();
    let job = PlanInputs { length: 1 << 17, ..inputs(&model, 8, Stage::Three) };
    let found = levers(&job, 24);
    let Tried { lever, together, .. } = *found.last().unwrap();
    let Lever::MaxLength(length) = lever else { panic!("{found:?}") };
    assert!(together.fits, "{found:?}");
    let all = ElementType::Bfloat16;
    let types = ElementTypes { compute: all, master: all, reduce: all, accumulate: all };
    let longer = PlanInputs { length: 2 * length, types, offload_optimizer: true, ..job };
    assert!(plan(&longer).unwrap().total > usable(24 << 30), "{length} is not the longest that fits");
}
