//! Files and their content.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::{Unpacker, set_attributes};
use crate::EntryProblem;
use crate::path::ImagePath;
use crate::tar::{Ended, Entry, Reader, Segment, Source};
use crate::tree::{failed, set, split};

/// How much is written at once.
pub(super) const BUFFER_BYTES: usize = 256 * 1024;

impl Unpacker<'_, '_> {
    pub(super) fn file<S: Source>(
        &mut self,
        reader: &mut Reader<'_, S>,
        entry: &Entry,
        path: &ImagePath,
    ) -> Result<(), Ended> {
        let metadata = self
            .metadata(entry, false)
            .map_err(|problem| reader.fail(problem))?;
        let mut file = self.create(path).map_err(|problem| reader.fail(problem))?;
        match &entry.sparse {
            None => self.write(reader, &mut file, entry.stored)?,
            Some(segments) => self.write_sparse(reader, &mut file, segments, entry.size)?,
        }
        let file = OwnedFd::from(file);
        set_attributes(&file, entry).map_err(|problem| reader.fail(problem))?;
        set(&file, &metadata)
            .map_err(failed("setting its owner, mode and time"))
            .map_err(|problem| reader.fail(problem))
    }

    /// Makes an empty file; whatever had its name goes.
    fn create(&mut self, path: &ImagePath) -> Result<File, EntryProblem> {
        let (parent, name) = split("its name", path)?;
        let place = self.tree.reach(parent)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(place.fd(), name, flags, Mode::RUSR | Mode::WUSR);
        let opened = match open() {
            Err(rustix::io::Errno::EXIST) => {
                self.tree.remove(&place, name)?;
                open()
            }
            opened => opened,
        };
        opened.map(File::from).map_err(failed("making the file"))
    }

    fn write_sparse<S: Source>(
        &mut self,
        reader: &mut Reader<'_, S>,
        file: &mut File,
        segments: &[Segment],
        size: u64,
    ) -> Result<(), Ended> {
        for segment in segments {
            file.seek(SeekFrom::Start(segment.offset))
                .map_err(|source| reader.fail(written(source)))?;
            self.write(reader, file, segment.length)?;
        }
        file.set_len(size)
            .map_err(|source| reader.fail(written(source)))
    }

    fn write<S: Source>(
        &mut self,
        reader: &mut Reader<'_, S>,
        file: &mut File,
        mut length: u64,
    ) -> Result<(), Ended> {
        while length > 0 {
            let wanted = length.min(BUFFER_BYTES as u64) as usize;
            let read = reader.read(&mut self.buffer[..wanted])?;
            if read == 0 {
                // The reader has compared the sizes; this keeps a mistake there from looping here.
                return Err(reader.fail(EntryProblem::CutOff { missing: length }));
            }
            file.write_all(&self.buffer[..read])
                .map_err(|source| reader.fail(written(source)))?;
            length -= read as u64;
        }
        Ok(())
    }
}

fn written(source: io::Error) -> EntryProblem {
    EntryProblem::System {
        action: "writing its content",
        source,
    }
}
