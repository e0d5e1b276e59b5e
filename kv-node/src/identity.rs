//! Who this node is, as its data folder remembers it.
//!
//! `identity.json` holds the format, the instance id drawn when the folder was created, and, once known, the cluster id
//! and the node id; `LOCK` is held for as long as the process runs. `OWNER` in the folder of each engine repeats the
//! instance id, so that an engine of another node is noticed.
//!
//! Invariants:
//! - the file is replaced as a whole (written beside, synced, renamed, folder synced), never edited;
//! - the instance id never changes; cluster id and node id never change once written;
//! - a folder that does not fit is refused with the file's name, and nothing in it is touched.
//!
//! Not here: how a node gets its ids (bootstrap, join).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use kv_proto::ids::NodeId;
use kv_raft::failpoint;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Format of the data folder.
const FORMAT: u32 = 1;
const IDENTITY: &str = "identity.json";
const LOCK: &str = "LOCK";
const OWNER: &str = "OWNER";

/// How far a node is on its way into a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Creates a cluster; begins again after a crash.
    Bootstrapping,
    /// Asks to be let in; has no node id yet.
    Joining,
    /// Has its ids.
    Member,
}

/// The content of `identity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    format: u32,
    /// See [`Stage`].
    pub stage: Stage,
    /// 16 random bytes, in hexadecimal digits.
    pub instance_id: String,
    /// Empty while joining.
    pub cluster_id: String,
    node_id: u64,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process holds it.
    #[error("{path} is locked: another process uses this data folder")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// "read", "write", ...
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Truncated, damaged, or written by a newer version.
    #[error("{path} is not readable as an identity: {why}; nothing was changed")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Data without an identity.
    #[error(
        "{path} is missing although the folder holds {found}: not starting on data of an unknown node; nothing was changed"
    )]
    Missing {
        /// The file that should be there.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The folder belongs to another cluster or node.
    #[error(
        "{path} says cluster {ours}, node {our_node}, but {theirs}: this folder belongs elsewhere; nothing was changed"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The cluster in the file.
        ours: String,
        /// The node in the file.
        our_node: NodeId,
        /// What was found instead.
        theirs: String,
    },
}

/// A data folder this process holds.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Locked until it is dropped.
    _lock: File,
}

impl Identity {
    /// Of a new folder, with a random instance id.
    #[must_use]
    pub fn create(stage: Stage, cluster_id: String, node: NodeId) -> Self {
        Self { format: FORMAT, stage, instance_id: random_id(), cluster_id, node_id: node.0 }
    }

    /// 0 while joining.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId(self.node_id)
    }

    /// As it crosses the wire; 16 bytes.
    #[must_use]
    pub fn instance_bytes(&self) -> Vec<u8> {
        u128::from_str_radix(&self.instance_id, 16).unwrap_or_default().to_be_bytes().to_vec()
    }

    /// Of a node that begins the cluster of this id.
    #[must_use]
    pub fn into_first(self, cluster_id: String, node: NodeId) -> Self {
        Self { stage: Stage::Bootstrapping, cluster_id, node_id: node.0, ..self }
    }

    /// With the ids the cluster gave.
    #[must_use]
    pub fn into_member(self, cluster_id: String, node: NodeId) -> Self {
        Self { stage: Stage::Member, cluster_id, node_id: node.0, ..self }
    }
}

/// 128 random bits in hexadecimal digits; also what a cluster id is.
#[must_use]
pub fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl DataFolder {
    /// Creates the folder if need be and locks it.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        fs::create_dir_all(path).map_err(fail(path, "create"))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(fail(&lock_path, "open"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(IdentityError::InUse { path: lock_path }),
            Err(error) => Err(IdentityError::Io { path: lock_path, what: "lock", source: error.into() }),
        }
    }

    /// Locks a folder that was one before; None, and nothing is made, if it was not.
    pub fn open_existing(path: &Path) -> Result<Option<Self>, IdentityError> {
        let identity = path.join(IDENTITY);
        if identity.try_exists().map_err(fail(&identity, "look at"))? { Self::open(path).map(Some) } else { Ok(None) }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the logs of all replicas lie.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the data of all replicas lies.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where the last known catalog lies.
    #[must_use]
    pub fn catalog_file(&self) -> PathBuf {
        self.path.join("catalog.bin")
    }

    /// Where the identity lies.
    #[must_use]
    pub fn identity_file(&self) -> PathBuf {
        self.path.join(IDENTITY)
    }

    /// None in a new folder; refuses a folder with data but without an identity.
    pub fn read_identity(&self) -> Result<Option<Identity>, IdentityError> {
        let path = self.identity_file();
        let Some(bytes) = read_if_there(&path)? else {
            return match self.leftover()? {
                Some(found) => Err(IdentityError::Missing { path, found }),
                None => Ok(None),
            };
        };
        let unreadable = |why: String| IdentityError::Unreadable { path: path.clone(), why };
        let identity: Identity = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if identity.format != FORMAT {
            return Err(unreadable(format!("format {} is not known, only {FORMAT}", identity.format)));
        }
        if identity.instance_id.len() != 32 || u128::from_str_radix(&identity.instance_id, 16).is_err() {
            return Err(unreadable("instance_id is not 32 hexadecimal digits".to_owned()));
        }
        let has_ids = !identity.cluster_id.is_empty() && identity.node_id != 0;
        if has_ids == (identity.stage == Stage::Joining) {
            return Err(unreadable("cluster_id and node_id do not fit the stage".to_owned()));
        }
        Ok(Some(identity))
    }

    /// Replaces the identity durably.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        let text = serde_json::to_vec_pretty(identity).expect("strings and numbers become JSON");
        write_atomically(&self.identity_file(), &text)
    }

    /// Makes the folder of an engine this node's own if it is new; refuses that of another node. Before it is opened.
    pub fn claim(&self, engine: &Path, identity: &Identity) -> Result<(), IdentityError> {
        let path = engine.join(OWNER);
        let foreign = |theirs: String| IdentityError::Foreign {
            path: self.identity_file(),
            ours: identity.cluster_id.clone(),
            our_node: identity.node(),
            theirs,
        };
        if let Some(owner) = read_if_there(&path)? {
            let ours = owner == identity.instance_id.as_bytes();
            let owner = String::from_utf8_lossy(&owner);
            return if ours { Ok(()) } else { Err(foreign(format!("{} says instance {owner}", path.display()))) };
        }
        // Both engines are claimed before either is opened. A replica that lost its log or its data alone would go on
        // under its old id without the votes it cast and the writes it acknowledged.
        for part in [self.log_dir(), self.data_dir()] {
            if is_used(&part)? {
                let found = format!("data of an engine in {}", part.display());
                return Err(IdentityError::Missing { path, found });
            }
        }
        fs::create_dir_all(engine).map_err(fail(engine, "create"))?;
        write_atomically(&path, identity.instance_id.as_bytes())
    }

    fn leftover(&self) -> Result<Option<String>, IdentityError> {
        for part in [self.log_dir(), self.data_dir(), self.catalog_file()] {
            if part.try_exists().map_err(fail(&part, "look at"))? {
                return Ok(Some(part.display().to_string()));
            }
        }
        Ok(None)
    }
}

/// Whether an engine was opened in this folder. A crash may have left the folder itself, or the file that was to become
/// OWNER.
fn is_used(engine: &Path) -> Result<bool, IdentityError> {
    match fs::read_dir(engine) {
        Ok(mut content) => {
            Ok(content.any(|entry| entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with(OWNER))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fail(engine, "read")(error)),
    }
}

/// None if the file does not exist.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map_err(fail(path, "read"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(IdentityError::Io { path: path.to_owned(), what: "read", source }),
    };
    Ok(Some(bytes))
}

/// Afterwards the file holds all of `bytes` or, after a crash, what it held before.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let beside = path.with_extension("tmp");
    failpoint!("file.write");
    let mut file = File::create(&beside).map_err(fail(&beside, "create"))?;
    file.write_all(bytes).map_err(fail(&beside, "write"))?;
    file.sync_all().map_err(fail(&beside, "sync"))?;
    failpoint!("file.rename");
    fs::rename(&beside, path).map_err(fail(path, "replace"))?;
    failpoint!("file.renamed");
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail(folder, "sync"))
}

fn fail(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { path, what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        assert_eq!(folder.read_identity().unwrap(), None);
        let joining = Identity::create(Stage::Joining, String::new(), NodeId(0));
        folder.write_identity(&joining).unwrap();
        assert_eq!(folder.read_identity().unwrap(), Some(joining.clone()));
        let member = joining.into_member(random_id(), NodeId(3));
        folder.write_identity(&member).unwrap();
        assert_eq!(folder.read_identity().unwrap(), Some(member));
    }

    #[test]
    fn looking_for_a_folder_that_is_none_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(DataFolder::open_existing(&dir.path().join("typo")).unwrap().is_none());
        assert!(DataFolder::open_existing(dir.path()).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let folder = DataFolder::open(dir.path()).unwrap();
        folder.write_identity(&Identity::create(Stage::Joining, String::new(), NodeId(0))).unwrap();
        drop(folder);
        // A copy may have left the lock behind.
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert!(DataFolder::open_existing(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_folder_in_use_is_refused_with_the_name_of_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let _held = DataFolder::open(dir.path()).unwrap();
        let error = DataFolder::open(dir.path()).unwrap_err();
        assert!(matches!(&error, IdentityError::InUse { path } if path.ends_with(LOCK)), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_refused_and_left_alone() {
        for damage in [
            "",
            "{",
            "{\"format\":1}",
            "{\"format\":1,\"stage\":\"member\",\"instance_id\":\"\",\"cluster_id\":\"\",\"node_id\":0}",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let folder = DataFolder::open(dir.path()).unwrap();
            fs::write(folder.identity_file(), damage).unwrap();
            let error = folder.read_identity().unwrap_err().to_string();
            assert!(error.contains(IDENTITY), "{error}");
            assert_eq!(fs::read_to_string(folder.identity_file()).unwrap(), damage);
        }
    }

    #[test]
    fn an_engine_of_another_node_is_refused_and_a_claim_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let [ours, theirs] = [1, 2].map(|node| Identity::create(Stage::Member, random_id(), NodeId(node)));
        let engine = folder.log_dir();
        folder.claim(&engine, &ours).unwrap();
        folder.claim(&engine, &ours).unwrap();
        let error = folder.claim(&engine, &theirs).unwrap_err().to_string();
        assert!(error.contains("log/OWNER"), "{error}");
        fs::remove_file(engine.join(OWNER)).unwrap();
        folder.claim(&engine, &ours).unwrap();
        fs::remove_file(engine.join(OWNER)).unwrap();
        fs::write(engine.join("000004.log"), "entries").unwrap();
        assert!(matches!(folder.claim(&engine, &ours), Err(IdentityError::Missing { .. })));
    }

    #[test]
    fn a_flipped_cut_or_missing_owner_is_refused_by_name_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let ours = Identity::create(Stage::Member, random_id(), NodeId(1));
        let engines = [folder.log_dir(), folder.data_dir()];
        engines.iter().for_each(|engine| folder.claim(engine, &ours).unwrap());
        engines.iter().for_each(|engine| fs::write(engine.join("CURRENT"), "manifest").unwrap());
        for engine in [folder.log_dir(), folder.data_dir()] {
            let owner = engine.join(OWNER);
            let whole = fs::read(&owner).unwrap();
            let flips = (0..whole.len() * 8).map(|bit| {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                flipped
            });
            let cuts = (0..whole.len()).map(|keep| whole[..keep].to_vec());
            for damaged in flips.chain(cuts) {
                fs::write(&owner, &damaged).unwrap();
                let error = folder.claim(&engine, &ours).unwrap_err().to_string();
                assert!(error.contains(owner.to_str().unwrap()), "{error}");
                assert_eq!(fs::read(&owner).unwrap(), damaged);
            }
            fs::remove_file(&owner).unwrap();
            let error = folder.claim(&engine, &ours).unwrap_err().to_string();
            assert!(error.contains(owner.to_str().unwrap()), "{error}");
            fs::write(&owner, &whole).unwrap();
        }
    }

    #[test]
    fn an_engine_that_vanished_beside_the_other_is_not_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let ours = Identity::create(Stage::Member, random_id(), NodeId(1));
        let engines = [folder.log_dir(), folder.data_dir()];
        engines.iter().for_each(|engine| folder.claim(engine, &ours).unwrap());
        for (lost, left) in [(&engines[0], &engines[1]), (&engines[1], &engines[0])] {
            fs::write(left.join("CURRENT"), "manifest").unwrap();
            fs::remove_dir_all(lost).unwrap();
            assert!(matches!(folder.claim(lost, &ours), Err(IdentityError::Missing { .. })));
            fs::remove_file(left.join("CURRENT")).unwrap();
            folder.claim(lost, &ours).unwrap();
        }
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        fs::create_dir(folder.log_dir()).unwrap();
        assert!(matches!(folder.read_identity(), Err(IdentityError::Missing { .. })));
    }
}
