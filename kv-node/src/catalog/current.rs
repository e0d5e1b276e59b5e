//! The newest catalog this node knows, kept across restarts.
//!
//! Invariants: the view never goes back to an older version; the file is written before the view is shown, so whatever
//! a node did because of a view, it knows that view again after a crash.
//!
//! Not here: where newer catalogs come from (node, follow).

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kv_proto::pb::admin::v1::Catalog;
use prost::Message as _;
use tokio::sync::watch;

use super::view::CatalogView;
use crate::identity::{read_if_there, write_atomically};
use kv_raft::failpoint;

/// Length of the checksum before the records.
const CHECKSUM_BYTES: usize = 4;

/// The view that everyone on this node reads, and its file.
pub struct CurrentCatalog {
    view: Arc<ArcSwap<CatalogView>>,
    version: watch::Sender<u64>,
    file: PathBuf,
    /// One publication at a time.
    publishing: tokio::sync::Mutex<()>,
}

impl CurrentCatalog {
    /// From the file, if there is a readable one. A damaged file is only a cache lost: the catalog itself is in shard 1.
    pub fn open(file: PathBuf) -> Result<Self, crate::identity::IdentityError> {
        let view = match read_if_there(&file)?.map(|bytes| decode(&bytes)) {
            Some(Ok(view)) => view,
            Some(Err(why)) => {
                tracing::warn!(file = %file.display(), why, "the cached catalog is not readable; it will be fetched again");
                CatalogView::default()
            }
            None => CatalogView::default(),
        };
        let (version, _) = watch::channel(view.version());
        let view = Arc::new(ArcSwap::from_pointee(view));
        Ok(Self { view, version, file, publishing: tokio::sync::Mutex::default() })
    }

    /// To read from at any time.
    #[must_use]
    pub fn view(&self) -> &Arc<ArcSwap<CatalogView>> {
        &self.view
    }

    /// The newest view.
    #[must_use]
    pub fn load(&self) -> Arc<CatalogView> {
        self.view.load_full()
    }

    /// Changes whenever the version does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Takes in a catalog if it is newer; tells whether it was.
    pub async fn publish(&self, catalog: Catalog) -> bool {
        let _alone = self.publishing.lock().await;
        let known = self.view.load().version();
        if catalog.version <= known {
            return false;
        }
        let bytes = encode(&catalog);
        let view = match CatalogView::new(catalog) {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(%error, "a newer catalog cannot be used");
                return false;
            }
        };
        failpoint!("catalog.write");
        let file = self.file.clone();
        let written = kv_raft::blocking::spawn_blocking(move || write_atomically(&file, &bytes)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "a newer catalog cannot be kept; this node stays with the one it has");
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "a newer catalog was not written");
                return false;
            }
        }
        failpoint!("catalog.written");
        let version = view.version();
        self.view.store(Arc::new(view));
        self.version.send_replace(version);
        tracing::debug!(version, "catalog");
        true
    }
}

fn encode(catalog: &Catalog) -> Vec<u8> {
    let records = catalog.encode_to_vec();
    [&crc32c::crc32c(&records).to_le_bytes(), records.as_slice()].concat()
}

fn decode(bytes: &[u8]) -> Result<CatalogView, String> {
    let (checksum, records) = bytes.split_first_chunk::<CHECKSUM_BYTES>().ok_or("it is too short")?;
    if crc32c::crc32c(records) != u32::from_le_bytes(*checksum) {
        return Err("its checksum is wrong".to_owned());
    }
    let catalog = Catalog::decode(records).map_err(|error| error.to_string())?;
    CatalogView::new(catalog).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(version: u64) -> Catalog {
        Catalog { format: super::super::records::FORMAT, version, ..Default::default() }
    }

    #[tokio::test]
    async fn a_published_catalog_is_known_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("catalog.bin");
        let current = CurrentCatalog::open(file.clone()).unwrap();
        assert!(current.publish(catalog(7)).await);
        assert!(!current.publish(catalog(6)).await, "an older one is not taken");
        assert_eq!(CurrentCatalog::open(file).unwrap().load().version(), 7);
    }

    #[tokio::test]
    async fn a_damaged_file_is_only_a_cache_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("catalog.bin");
        std::fs::write(&file, b"nonsense").unwrap();
        assert_eq!(CurrentCatalog::open(file).unwrap().load().version(), 0);
    }
}
