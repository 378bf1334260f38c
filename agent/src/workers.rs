//! The data-path threads. Each is a single-threaded runtime with its own tunnel pool, so that a connection, its tunnel
//! and its relay never hop between threads: waking another processor costs more than the whole TCP stack.
//!
//! A connection stays on the thread that accepted it unless that thread is clearly busier than another.

use std::{
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use karst_netns::Netns;
use karst_runtime::{
    liveness::{BEAT_PERIOD, Beat, Liveness},
    supervise,
};
use tokio::{net::TcpStream, sync::mpsc};

use crate::{mesh::Mesh, outbound::dial::TunnelPool};

/// Jobs that may wait for a thread; one more is refused, which closes the connection that it stands for.
const MAX_QUEUED_JOBS: usize = 4096;

/// How many more connections the own thread must have than the idlest before one is handed over.
const HANDOVER_MARGIN: usize = 2;

type Job = Box<dyn FnOnce(Rc<Worker>) + Send>;

/// Handle to all data-path threads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Workers {
    lanes: Arc<[Lane]>,
}

struct Lane {
    jobs: mpsc::Sender<Job>,
    connections: AtomicUsize,
}

/// One data-path thread, as the code that runs on it sees it.
pub(crate) struct Worker {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) pool: TunnelPool,
    workers: Workers,
    index: usize,
}

/// Counts a connection as load of a thread while it lives.
pub(crate) struct Load {
    workers: Workers,
    index: usize,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.workers.lanes[self.index]
            .connections
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads. They end when the last clone of the returned handle and all their tasks are gone.
    pub(crate) fn start(
        count: usize,
        mesh: &Arc<Mesh>,
        liveness: &Liveness,
    ) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (lanes, inboxes): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (jobs, inbox) = mpsc::channel(MAX_QUEUED_JOBS);
                (
                    Lane {
                        jobs,
                        connections: AtomicUsize::new(0),
                    },
                    inbox,
                )
            })
            .unzip();
        let workers = Self {
            lanes: lanes.into(),
        };
        let threads = inboxes
            .into_iter()
            .enumerate()
            .map(|(index, inbox)| {
                let (workers, mesh) = (workers.clone(), mesh.clone());
                let name = format!("karst-data-{index}");
                let beat = liveness.register(&name);
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || run_thread(index, workers, mesh, inbox, beat))
            })
            .collect::<io::Result<_>>()?;
        Ok((workers, threads))
    }

    /// Runs `job` on the thread with this number (modulo their count). Returns false when its queue is full.
    pub(crate) fn run_on(
        &self,
        index: usize,
        job: impl FnOnce(Rc<Worker>) + Send + 'static,
    ) -> bool {
        self.lanes[index % self.lanes.len()]
            .jobs
            .try_send(Box::new(job))
            .is_ok()
    }

    /// The thread with the fewest connections.
    fn idlest(&self) -> usize {
        let load = |index: &usize| self.lanes[*index].connections.load(Ordering::Relaxed);
        (0..self.lanes.len()).min_by_key(load).unwrap_or(0)
    }

    fn count(&self, index: usize) -> Load {
        self.lanes[index]
            .connections
            .fetch_add(1, Ordering::Relaxed);
        Load {
            workers: self.clone(),
            index,
        }
    }
}

impl Worker {
    /// Runs `serve` for an accepted connection, here or on the idlest thread.
    pub(crate) fn place<F, Fut>(self: &Rc<Self>, name: &'static str, stream: TcpStream, serve: F)
    where
        F: FnOnce(Rc<Self>, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let idlest = self.workers.idlest();
        let here = self.workers.lanes[self.index]
            .connections
            .load(Ordering::Relaxed);
        let there = self.workers.lanes[idlest]
            .connections
            .load(Ordering::Relaxed);
        if here < there + HANDOVER_MARGIN {
            let load = self.workers.count(self.index);
            spawn_counted(name, load, serve(self.clone(), stream));
            return;
        }
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let load = self.workers.count(idlest);
        let accepted = self.workers.run_on(idlest, move |worker| {
            if let Ok(stream) = TcpStream::from_std(stream) {
                spawn_counted(name, load, serve(worker, stream));
            }
        });
        if !accepted {
            self.mesh.metrics.worker_queue_full.inc();
        }
    }
}

fn spawn_counted(name: &'static str, load: Load, task: impl Future<Output = ()> + 'static) {
    supervise::spawn_local_connection(name, async move {
        let _load = load;
        task.await;
    });
}

fn run_thread(
    index: usize,
    workers: Workers,
    mesh: Arc<Mesh>,
    mut inbox: mpsc::Receiver<Job>,
    beat: Beat,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start a data-path thread: raise the limit of open files");
            mesh.shutdown.cancel();
            return;
        }
    };
    if let Err(error) = Netns::remember_home() {
        tracing::debug!(%error, "each dial looks the node's namespace up");
    }
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let stop = mesh.stopped.clone();
        let pool = TunnelPool::start(&mesh);
        let worker = Rc::new(Worker {
            mesh,
            pool,
            workers,
            index,
        });
        let mut beats = tokio::time::interval(BEAT_PERIOD);
        loop {
            tokio::select! {
                _ = beats.tick() => beat.beat(),
                job = inbox.recv() => match job {
                    Some(job) => job(worker.clone()),
                    None => break,
                },
                () = stop.cancelled() => break,
            }
        }
    });
}
