//! `PUT /fs/{id}`.

use vmm::Ask;
use vmm::config::FsConfig;
use vmm::requests::PutFs;

use super::drives::same_id;
use super::{Call, DONE, Reply};
use crate::error::Fault;
use crate::wire::Fs;

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call.id()?;
    let fs: Fs = call.json()?;
    same_id(id.as_str(), &fs.fs_id)?;
    let fs = call.valid(FsConfig::try_from(fs), Ask::Configure).await?;
    call.app.ask(PutFs(fs)).await?;
    DONE
}
