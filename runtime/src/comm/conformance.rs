//! Every backend against every other, bit by bit: all types, lengths and numbers of ranks.

use super::tests::{Backend, tensor};
use super::*;

/// Types that collectives are used with, and some that they are not.
pub(super) const KINDS: [Kind; 6] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half, Kind::Int64, Kind::Uint8];

/// Where tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Wherever libtorch puts them.
    Any,
    /// Where the backend wants them.
    Allocated,
}

pub(super) const MEMORIES: [Memory; 2] = [Memory::Any, Memory::Allocated];

/// What a rank asks for: elements of a shard and their type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    pub(super) length: i64,
    pub(super) kind: Kind,
    pub(super) memory: Memory,
}

impl Case {
    /// A copy of `values` in this case's memory.
    fn place(&self, comm: &dyn Collectives, values: &Tensor) -> Tensor {
        let numel = values.numel() as i64;
        let mut place = match self.memory {
            Memory::Any => Tensor::zeros([numel], (values.kind(), Device::Cpu)),
            Memory::Allocated => comm.allocate(numel, values.kind()).unwrap(),
        };
        place.copy_(values);
        place
    }

    fn empty(&self, comm: &dyn Collectives, numel: i64, kind: Kind) -> Tensor {
        self.place(comm, &Tensor::full([numel], 9, (kind, Device::Cpu)))
    }

    /// All collectives, apart and in place, started together; their outputs as bytes.
    pub(super) fn run(&self, comm: &dyn Collectives) -> Vec<Vec<u8>> {
        let (ranks, rank) = (comm.world_size() as i64, comm.rank() as i64);
        let full = tensor(comm.rank(), (self.length * ranks) as usize, self.kind);
        let shard = full.narrow(0, 0, self.length);
        let mine = |full: &Tensor| full.narrow(0, rank * self.length, self.length);

        let (gathered, source) = (self.empty(comm, full.numel() as i64, self.kind), self.place(comm, &shard));
        let gathered_in_place = self.empty(comm, full.numel() as i64, self.kind);
        mine(&gathered_in_place).copy_(&shard);
        let (summed, addend) = (self.empty(comm, self.length, self.kind), self.place(comm, &full));
        let summed_in_place = self.place(comm, &full);
        let pending = [
            comm.start_all_gather_into(&gathered, &source).unwrap(),
            comm.start_reduce_scatter_into(&summed, &addend).unwrap(),
            comm.start_all_gather_into(&gathered_in_place, &mine(&gathered_in_place)).unwrap(),
            comm.start_reduce_scatter_into(&mine(&summed_in_place), &summed_in_place).unwrap(),
        ];
        pending.into_iter().for_each(|pending| pending.wait().unwrap());
        // From here on inputs may be touched again.
        let (mut source, mut addend) = (source, addend);
        let _zeroed = (source.zero_(), addend.zero_());
        let mut outputs = vec![gathered, gathered_in_place, summed, mine(&summed_in_place)];

        if matches!(self.kind, Kind::BFloat16 | Kind::Half) {
            let (wide, narrow) = (self.empty(comm, self.length, Kind::Float), self.place(comm, &full));
            comm.reduce_scatter_into(&wide, &narrow).unwrap();
            outputs.push(wide);
        }
        let all = self.place(comm, &full);
        comm.all_reduce(&all).unwrap();
        // A length that ranks do not divide.
        let odd = self.place(comm, &tensor(comm.rank(), (self.length * ranks + 1) as usize, self.kind));
        comm.all_reduce(&odd).unwrap();
        outputs.extend([all, odd]);
        outputs.iter().map(bytes).collect()
    }
}

/// The bytes of a tensor.
pub(super) fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * element_size(tensor)];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// All cases on so many ranks.
fn run(backend: Backend, ranks: usize, cases: &[Case]) -> Vec<Vec<Vec<Vec<u8>>>> {
    backend.run(ranks, |comm| cases.iter().map(|case| case.run(comm)).collect())
}

fn compare(ranks: usize, cases: &[Case]) {
    let expected = run(Backend::Gloo, ranks, cases);
    let single = (ranks == 1).then_some(Backend::Single);
    for backend in [Backend::Shm, Backend::Shm].into_iter().chain(single) {
        for (rank, (theirs, ours)) in expected.iter().zip(run(backend, ranks, cases)).enumerate() {
            for (case, (theirs, ours)) in cases.iter().zip(theirs.iter().zip(ours)) {
                let differs = theirs.iter().zip(&ours).position(|(theirs, ours)| theirs != ours);
                assert_eq!(differs, None, "{backend:?}, rank {rank} of {ranks}, {case:?}: this output differs");
            }
        }
    }
}

#[test]
fn all_backends_give_the_same_bits_in_every_type_and_length() {
    for ranks in 1..=8 {
        let lengths = [0, 1, 3, 13, 64, 1000, 33_001];
        let kinds = KINDS.into_iter().flat_map(|kind| lengths.map(|length| (kind, length)));
        let cases: Vec<Case> =
            kinds.flat_map(|(kind, length)| MEMORIES.map(|memory| Case { length, kind, memory })).collect();
        compare(ranks, &cases);
    }
}

#[test]
fn all_backends_give_the_same_bits_in_buffers_of_some_mib() {
    for ranks in [2, 3, 4] {
        let kinds = [Kind::Float, Kind::BFloat16, Kind::Half];
        let cases = kinds
            .into_iter()
            .flat_map(|kind| MEMORIES.map(|memory| Case { length: (3 << 20) / ranks as i64 / 4 + 5, kind, memory }));
        compare(ranks, &cases.collect::<Vec<_>>());
    }
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn all_backends_give_the_same_bits_in_128_mib_which_takes_minutes_and_gigabytes() {
    for ranks in [2, 4] {
        for memory in MEMORIES {
            compare(ranks, &[Case { length: (128 << 20) / ranks as i64 / 4, kind: Kind::Float, memory }]);
        }
    }
}
