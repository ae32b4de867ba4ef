//! A pipeline that is overheard: what came in, what was said, what it looked like then.

use std::cell::RefCell;
use std::rc::Rc;

use flowgate_dataplane::exhaustion::Exhaustion;
use flowgate_dataplane::verdict::AwaitedFragment;
use flowgate_dataplane::{Context, Counters, Pipeline, Process, RxChecksums, Verdict};
use flowgate_tables::routing::NeighbourKey;

/// What the pipeline did with one frame.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
    pub(crate) verdict: Verdict,
}

/// The real pipeline, and a record of what it does.
pub(crate) struct Spy {
    pipeline: Pipeline,
    records: Rc<RefCell<Vec<Record>>>,
}

impl Spy {
    pub(crate) fn new(pipeline: Pipeline, records: Rc<RefCell<Vec<Record>>>) -> Self {
        Self { pipeline, records }
    }
}

impl Process for Spy {
    fn process<F: AsMut<[u8]>>(
        &mut self,
        frames: &mut [F],
        checksums: RxChecksums,
        context: &Context<'_>,
        counters: &mut Counters,
        verdicts: &mut [Verdict],
    ) {
        let before: Vec<Vec<u8>> = frames.iter_mut().map(|frame| frame.as_mut().to_vec()).collect();
        self.pipeline.process(frames, checksums, context, counters, verdicts);
        let decided = before.into_iter().zip(frames).zip(verdicts);
        self.records.borrow_mut().extend(decided.map(|((before, frame), verdict)| Record {
            before,
            after: frame.as_mut().to_vec(),
            verdict: *verdict,
        }));
    }

    fn drain_requests(&mut self, ask: impl FnMut(NeighbourKey)) {
        self.pipeline.drain_requests(ask);
    }

    fn drain_ready(&mut self, ready: impl FnMut(AwaitedFragment)) {
        self.pipeline.drain_ready(ready);
    }

    fn drain_exhaustions(&mut self, report: impl FnMut(Exhaustion) -> bool) {
        self.pipeline.drain_exhaustions(report);
    }
}
