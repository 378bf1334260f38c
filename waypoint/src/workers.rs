//! The data-path threads. Each is a single-threaded runtime with its own upstream connections, so that a request, its
//! tunnels and its bodies never hop between threads.

use std::{
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use karst_runtime::supervise;
use tokio::{net::TcpStream, sync::mpsc};

use crate::{health, mesh::Mesh, share, upstream::Upstreams};

/// Jobs that may wait for a thread; one more is refused, which closes the connection that it stands for.
const MAX_QUEUED_JOBS: usize = 4096;

type Job = Box<dyn FnOnce(Rc<Worker>) + Send>;

/// Handle to all data-path threads. Cheap to clone.
#[derive(Clone)]
pub struct Workers {
    lanes: Arc<[Lane]>,
}

struct Lane {
    jobs: mpsc::Sender<Job>,
    connections: AtomicUsize,
}

/// One data-path thread, as the code that runs on it sees it.
pub(crate) struct Worker {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) upstreams: Upstreams,
}

/// Counts a connection as load of a thread while it lives.
struct Load {
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
    /// Starts `count` threads. They end when `mesh.stopped` is cancelled.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(count: usize, mesh: &Arc<Mesh>) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (lanes, inboxes): (Vec<_>, Vec<_>) = (0..count.max(1))
            .map(|_| {
                let (jobs, inbox) = mpsc::channel(MAX_QUEUED_JOBS);
                let connections = AtomicUsize::new(0);
                (Lane { jobs, connections }, inbox)
            })
            .unzip();
        let workers = Self {
            lanes: lanes.into(),
        };
        let threads = inboxes
            .into_iter()
            .enumerate()
            .map(|(index, inbox)| {
                let mesh = mesh.clone();
                std::thread::Builder::new()
                    .name(format!("karst-data-{index}"))
                    .spawn(move || run_thread(mesh, inbox, index == 0))
            })
            .collect::<io::Result<_>>()?;
        Ok((workers, threads))
    }

    /// Runs `serve` for an accepted connection on the thread with the fewest.
    pub(crate) fn place<F, Fut>(&self, name: &'static str, stream: TcpStream, serve: F) -> bool
    where
        F: FnOnce(Rc<Worker>, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let Ok(stream) = stream.into_std() else {
            return false;
        };
        let index = self.idlest();
        let load = self.count(index);
        let job: Job = Box::new(move |worker| {
            if let Ok(stream) = TcpStream::from_std(stream) {
                let serving = serve(worker, stream);
                supervise::spawn_local_connection(name, async move {
                    let _load = load;
                    serving.await;
                });
            }
        });
        self.lanes[index].jobs.try_send(job).is_ok()
    }

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

/// One thread `checks` the health of endpoints, and what the other replicas do, for all.
fn run_thread(mesh: Arc<Mesh>, mut inbox: mpsc::Receiver<Job>, checks: bool) {
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
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let stop = mesh.stopped.clone();
        let worker = Rc::new(Worker {
            upstreams: Upstreams::new(&mesh),
            mesh,
        });
        supervise::spawn_local_connection("idle upstream connections", {
            let worker = worker.clone();
            let wanted = worker.mesh.services.wanted();
            async move { worker.upstreams.sweep(wanted).await }
        });
        if checks {
            let asking = health::run(worker.clone());
            supervise::spawn_local_connection("health checks", asking);
            let sharing = share::run(worker.clone());
            supervise::spawn_local_connection("share of the replicas", sharing);
        }
        loop {
            tokio::select! {
                job = inbox.recv() => match job {
                    Some(job) => job(worker.clone()),
                    None => break,
                },
                () = stop.cancelled() => break,
            }
        }
    });
}
