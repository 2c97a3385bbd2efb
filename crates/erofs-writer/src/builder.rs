//! The public face: tree operations, contents, and the end of it.

use std::fs::File;

use crate::{
    Attributes, BLOCK_SIZE, EntryKind, FileData, FileWriter, NodeKind, WriteError,
    data::DataArea,
    metadata::Metadata,
    tree::{Content, Tree, node_content},
};

/// Bounds on what an image may take; exceeding one is an error.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all file contents ever appended, removed files and holes included.
    pub max_data_bytes: u64,
    /// Files of any kind, at any one time.
    pub max_inodes: u64,
    /// Bytes of memory for names, attributes and link targets, about.
    pub max_metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_data_bytes: 64 << 30,
            max_inodes: 4_000_000,
            max_metadata_bytes: 2 << 30,
        }
    }
}

/// What an image is built with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Identifies the image; derive it from the content for equal bytes.
    pub uuid: [u8; 16],
    /// Bounds.
    pub limits: Limits,
}

/// A finished image.
#[derive(Debug)]
pub struct Summary {
    /// The image file, its contents on disk (synced).
    pub file: File,
    /// Its size, in bytes; a multiple of [`BLOCK_SIZE`].
    pub size_bytes: u64,
    /// Files of any kind in it.
    pub inodes: u64,
    /// Bytes of all file contents that were appended, holes included.
    pub data_bytes: u64,
}

/// An image being written; see the crate's documentation for the steps.
///
/// A path is a list of names from the root; names are any bytes but zero and
/// slash, and neither empty nor `.` nor `..`. Missing parents are made with mode
/// 0755, owned by root. After an error the image is of no use.
pub struct Builder {
    tree: Tree,
    data: DataArea,
    uuid: [u8; 16],
}

impl Builder {
    /// Begins an image in an empty file open for reading and writing. The root
    /// directory exists, with mode 0755 and owned by root.
    pub fn new(file: File, options: &Options) -> Self {
        let Limits {
            max_data_bytes,
            max_inodes,
            max_metadata_bytes,
        } = options.limits;
        Self {
            tree: Tree::new(max_inodes, max_metadata_bytes),
            data: DataArea::new(file, max_data_bytes),
            uuid: options.uuid,
        }
    }

    /// Makes everything so far a lower layer to what follows.
    pub fn begin_layer(&mut self) {
        self.tree.begin_layer();
    }

    /// Makes a directory; one that is there already only gets the attributes.
    /// With an empty path it is the root directory.
    ///
    /// # Errors
    /// For a bad path, or beyond a limit.
    pub fn insert_dir(&mut self, path: &[&[u8]], attributes: Attributes) -> Result<(), WriteError> {
        self.tree.insert_dir(path, attributes)?;
        self.punch()
    }

    /// Begins the contents of a file.
    ///
    /// # Errors
    /// If the image has no blocks left.
    pub fn begin_file(&mut self) -> Result<FileWriter<'_>, WriteError> {
        self.data.begin()
    }

    /// Names a regular file with contents from [`Builder::begin_file`].
    ///
    /// # Errors
    /// For a bad path, or beyond a limit.
    pub fn insert_file(
        &mut self,
        path: &[&[u8]],
        attributes: Attributes,
        data: FileData,
    ) -> Result<(), WriteError> {
        self.tree.insert(path, Content::File(data), attributes)?;
        self.punch()
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// For a bad path or target, or beyond a limit.
    pub fn insert_symlink(
        &mut self,
        path: &[&[u8]],
        attributes: Attributes,
        target: &[u8],
    ) -> Result<(), WriteError> {
        let attributes = Attributes {
            permissions: 0o777,
            ..attributes
        };
        self.tree
            .insert(path, Content::Symlink(target.into()), attributes)?;
        self.punch()
    }

    /// Makes a device node, fifo or socket.
    ///
    /// # Errors
    /// For a bad path or device number, or beyond a limit.
    pub fn insert_node(
        &mut self,
        path: &[&[u8]],
        attributes: Attributes,
        node: NodeKind,
    ) -> Result<(), WriteError> {
        self.tree.insert(path, node_content(node)?, attributes)?;
        self.punch()
    }

    /// Gives the file at `target`, of this layer or a lower one, another name.
    ///
    /// # Errors
    /// For a bad path, a target that is missing or a directory, or beyond a limit.
    pub fn insert_hardlink(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), WriteError> {
        self.tree.insert_hardlink(path, target)?;
        self.punch()
    }

    /// Removes what lower layers have under that name; a name that does not
    /// exist is no error.
    ///
    /// # Errors
    /// For a bad path.
    pub fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), WriteError> {
        self.tree.whiteout(path)?;
        self.punch()
    }

    /// Removes what lower layers have inside that directory.
    ///
    /// # Errors
    /// For a bad path.
    pub fn opaque(&mut self, path: &[&[u8]]) -> Result<(), WriteError> {
        self.tree.opaque(path)?;
        self.punch()
    }

    /// What is at that path now, if anything.
    ///
    /// # Errors
    /// For a path through a loop of links.
    pub fn kind(&self, path: &[&[u8]]) -> Result<Option<EntryKind>, WriteError> {
        Ok(self.tree.find(path)?.map(|id| self.tree.inode(id).kind()))
    }

    /// Writes the metadata and the superblock, and syncs the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(self) -> Result<Summary, WriteError> {
        let data_bytes = self.data.appended();
        let (file, first_free) = self.data.finish()?;
        let metadata = Metadata::plan(&self.tree, first_free)?;
        let blocks = metadata.write(&file, self.uuid)?;
        let size_bytes = blocks * BLOCK_SIZE;
        file.set_len(size_bytes)
            .map_err(WriteError::io("set the size of"))?;
        file.sync_all().map_err(WriteError::io("sync"))?;
        Ok(Summary {
            file,
            size_bytes,
            inodes: metadata.inodes(),
            data_bytes,
        })
    }

    fn punch(&mut self) -> Result<(), WriteError> {
        self.tree
            .take_orphans()
            .into_iter()
            .try_for_each(|data| self.data.free(data))
    }
}
