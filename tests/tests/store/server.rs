//! An S3 server in this process, on files of a folder: what lies in it can be looked at and spoiled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::S3ServiceBuilder;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

/// Who may ask.
pub(crate) const ACCESS_KEY: &str = "AKTESTS";
pub(crate) const SECRET_KEY: &str = "SKTESTS";
/// The one bucket.
pub(crate) const BUCKET: &str = "models";

/// What s3s-fs lacks: buckets that must be there, and objects that are created only if they are not.
struct Conditional {
    files: FileSystem,
    folder: PathBuf,
    /// A server that knows nothing of conditions is one without them.
    obeys: bool,
    /// One condition is looked at at a time.
    creating: tokio::sync::Mutex<()>,
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Conditional {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        let conditional = self.obeys && request.input.if_none_match.as_deref() == Some("*");
        let bucket = self.folder.join(&request.input.bucket);
        if !bucket.exists() {
            return Err(s3_error!(NoSuchBucket));
        }
        let _one = self.creating.lock().await;
        if conditional && bucket.join(&request.input.key).exists() {
            return Err(s3_error!(PreconditionFailed, "it is there already"));
        }
        self.files.put_object(request).await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        self.files.get_object(request).await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        self.files.head_object(request).await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.files.delete_object(request).await
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        self.files.list_objects_v2(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        self.files.create_multipart_upload(request).await
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.files.upload_part(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.files.complete_multipart_upload(request).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.files.abort_multipart_upload(request).await
    }
}

/// A server that runs. Dropped, it is gone, with all connections to it.
pub(crate) struct Server {
    address: SocketAddr,
    folder: PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    /// Serves what lies in `folder`, which is made if need be, at any free port.
    pub(crate) fn start(folder: PathBuf) -> Server {
        Server::serve(folder, true)
    }

    /// The same, but it writes over what is there though asked not to.
    pub(crate) fn without_conditions(folder: PathBuf) -> Server {
        Server::serve(folder, false)
    }

    fn serve(folder: PathBuf, obeys: bool) -> Server {
        std::fs::create_dir_all(folder.join(BUCKET)).expect("the scene can be written");
        let files = FileSystem::new(&folder).expect("the scene can be read");
        let mut service =
            S3ServiceBuilder::new(Conditional { files, folder: folder.clone(), obeys, creating: Default::default() });
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build().into_shared();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let connection = TokioIo::new(connection);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(connection, service).await;
                });
            }
        });
        Server { address, folder, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder of the objects under a prefix.
    pub(crate) fn objects(&self, prefix: &str) -> PathBuf {
        self.folder.join(BUCKET).join(prefix)
    }

    /// Parts of uploads that were neither finished nor given up.
    pub(crate) fn parts(&self) -> usize {
        let names = std::fs::read_dir(&self.folder).expect("the folder is there").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(".upload")).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// The steps under a folder of objects that have a manifest.
pub(crate) fn published(objects: &Path) -> Vec<u64> {
    let step = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok();
    let steps = std::fs::read_dir(objects).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut steps: Vec<u64> = steps.filter(|path| path.join("manifest.json").is_file()).filter_map(step).collect();
    steps.sort_unstable();
    steps
}
