//! A tar archive of an OCI image layout (OCI image specification, image-layout.md), written from front to back.
//!
//! The same image under the same name gives the same bytes: there are no times and no owners in it.

use std::io::{self, SeekFrom};

use serde_json::Value;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _, BufWriter};

use crate::Digest;

/// Bytes of a record of a tar archive (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK: u64 = 512;
/// Bytes that are gathered before they are written: each write is a trip to a thread that may block.
const GATHERED_BYTES: usize = 256 * 1024;

/// Writes the archive.
pub(crate) struct LayoutWriter {
    file: BufWriter<File>,
    /// Where the entry that is being written began.
    start: u64,
    position: u64,
}

impl LayoutWriter {
    /// Begins an archive with its index, which names one manifest.
    pub(crate) async fn new(file: std::fs::File, descriptor: &Value) -> io::Result<Self> {
        let mut writer = Self {
            file: BufWriter::with_capacity(GATHERED_BYTES, File::from_std(file)),
            start: 0,
            position: 0,
        };
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]
        });
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        writer.entry("oci-layout", version.as_bytes()).await?;
        let index = index.to_string();
        writer.entry("index.json", index.as_bytes()).await?;
        Ok(writer)
    }

    /// Writes content that is at hand.
    pub(crate) async fn blob(&mut self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        self.begin(digest, bytes.len() as u64).await?;
        self.write(bytes).await?;
        self.end().await
    }

    /// Begins content of this size.
    pub(crate) async fn begin(&mut self, digest: Digest, size: u64) -> io::Result<()> {
        self.head(&format!("blobs/sha256/{}", digest.hex()), size)
            .await
    }

    /// Goes on with it.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Drops what was written since [`LayoutWriter::begin`].
    pub(crate) async fn restart(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.seek(SeekFrom::Start(self.start)).await?;
        self.file.get_ref().set_len(self.start).await?;
        self.position = self.start;
        Ok(())
    }

    /// Ends it, as the format demands at the end of a block.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        let padding = self.position.next_multiple_of(BLOCK) - self.position;
        let zeros = [0; BLOCK as usize];
        self.write(&zeros[..usize::try_from(padding).unwrap_or(0)])
            .await
    }

    /// Ends the archive. Gives its file, at its beginning, and its size.
    pub(crate) async fn finish(mut self) -> io::Result<(std::fs::File, u64)> {
        self.write(&[0; 2 * BLOCK as usize]).await?;
        // Without it, nobody would hear of a last write that failed.
        self.file.flush().await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        let file = self.file.into_inner().into_std().await;
        Ok((file, self.position))
    }

    async fn entry(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.head(name, bytes.len() as u64).await?;
        self.write(bytes).await?;
        self.end().await
    }

    async fn head(&mut self, name: &str, size: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        self.write(header.as_bytes()).await?;
        self.start = self.position;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_told() {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let descriptor = serde_json::json!({});
        let writer = LayoutWriter::new(full, &descriptor).await.unwrap();
        let error = writer.finish().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
