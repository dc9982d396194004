//! `/balloon` and what is below it.

use axum::http::Method;
use vmm::requests::{
    GetBalloon, GetBalloonStatistics, GetHinting, PatchBalloon, PatchBalloonStatistics, PutBalloon, StartHinting,
    StopHinting,
};

use super::{Call, DONE, Reply, found, unknown};
use crate::error::Fault;
use crate::wire::{Balloon, BalloonPatch, BalloonStatisticsPatch, Hinting, HintingStart, Statistics};

pub(super) async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    // Unlike elsewhere a piece too many is meant for something: statistics or hinting.
    if let Some(piece) = call.rest.first() {
        return Err(unknown(&Method::GET, &format!("/balloon/{piece}")));
    }
    found(&Balloon::from(call.app.ask(GetBalloon).await?))
}

pub(super) async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let balloon: Balloon = call.json()?;
    call.app.ask(PutBalloon(balloon.into())).await?;
    DONE
}

pub(super) async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    if call.rest.first() == Some(&"hinting") {
        return Err(unknown(&Method::PATCH, "/balloon/hinting"));
    }
    let BalloonPatch { amount_mib } = call.json()?;
    call.app.ask(PatchBalloon { amount_mib }).await?;
    DONE
}

pub(super) async fn get_statistics(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&Statistics::from(call.app.ask(GetBalloonStatistics).await?))
}

pub(super) async fn patch_statistics(call: &Call<'_>) -> Result<Reply, Fault> {
    let BalloonStatisticsPatch { stats_polling_interval_s } = call.json()?;
    call.app.ask(PatchBalloonStatistics { interval_s: stats_polling_interval_s }).await?;
    DONE
}

pub(super) async fn start_hinting(call: &Call<'_>) -> Result<Reply, Fault> {
    let HintingStart { acknowledge_on_stop } =
        if call.body.is_empty() { HintingStart::default() } else { call.json()? };
    call.app.ask(StartHinting { acknowledge_on_stop }).await?;
    DONE
}

/// There is nothing to say in a body, so none is looked at.
pub(super) async fn stop_hinting(call: &Call<'_>) -> Result<Reply, Fault> {
    call.app.ask(StopHinting).await?;
    DONE
}

pub(super) async fn get_hinting(call: &Call<'_>) -> Result<Reply, Fault> {
    found(&Hinting::from(call.app.ask(GetHinting).await?))
}
