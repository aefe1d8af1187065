//! Tiles: partial aggregates in place of events that nothing asks for one by one any more.
//!
//! A group whose long windows all have tiled edges, and want sums and the like of their events, reads
//! events by themselves only as far back as its other features reach. What lies behind that is folded,
//! a page at a time, into entries without a row: one for each stretch of the finest tile width. Where
//! there are few events in a stretch the page stays as it is, which takes less room. A late event goes
//! into the tile of its stretch.

use super::unit::{Entry, Unit, UnitRules};
use super::view::{RowSource, UnitView};
use crate::error::Result;
use crate::operator::{EventBuf, Fold, Layout, Order, partial};

/// In place of the row id of a tile.
const TILE: u64 = u64::MAX;
/// Entries that one event may fold or unfold.
const FOLD_STEPS: usize = 4;

impl UnitRules {
    /// Which of `entries` takes an event: the last that begins before it, or the next if the event is of
    /// the stretch in which that begins.
    pub(super) fn place(&self, entries: &[Entry], order: Order) -> usize {
        let index = entries.partition_point(|e| e.lo <= order).saturating_sub(1);
        let is_of_next = |fold: Fold| {
            let next = entries.get(index + 1).map(|e| fold.tile_of(e.lo.time));
            entries[index].hi < order && next == Some(fold.tile_of(order.time))
        };
        index + usize::from(self.fold.is_some_and(is_of_next))
    }
}

impl Entry {
    /// Whether it stands for events that are gone.
    pub fn is_tile(&self) -> bool {
        self.row == TILE
    }

    /// A tile over neighbouring events.
    fn tile(layout: &Layout, events: &EventBuf) -> Self {
        Self::over_events(layout, TILE, events)
    }

    fn take_in(&mut self, layout: &Layout, other: &Self) {
        (self.lo, self.hi) = (self.lo.min(other.lo), self.hi.max(other.hi));
        self.events += other.events;
        partial::merge(layout, &mut self.words, &other.words);
    }
}

/// Tiles for the events of a page, if they take less room than it.
fn smaller_tiles(layout: &Layout, fold: Fold, page: &EventBuf) -> Option<Vec<Entry>> {
    let len = page.len(layout);
    let tile_at = |index: usize| fold.tile_of(page.get(layout, index).time());
    let mut tiles = Vec::new();
    let mut from = 0;
    for to in 1..=len {
        if to == len || tile_at(to) != tile_at(from) {
            tiles.push(Entry::tile(layout, &page.slice(layout, from, to)));
            from = to;
        }
    }
    // The entry of the page goes, too.
    let entry_bytes = size_of::<Entry>() + layout.partial_words * 8;
    ((tiles.len() - 1) * entry_bytes <= page.bytes()).then_some(tiles)
}

impl Unit {
    /// Folds what has become old enough, a few rows at a time.
    pub(super) fn fold_old(
        &mut self,
        layout: &Layout,
        rules: &UnitRules,
        rows: &dyn RowSource,
    ) -> Result<()> {
        let Some(fold) = rules.fold else { return Ok(()) };
        let limit = fold.limit(self.row_clock);
        for _ in 0..FOLD_STEPS {
            let index = self.entries.partition_point(|e| e.hi.time < self.folded_to);
            let Some(entry) = self.entries.get(index) else { return Ok(()) };
            let oldest_left = if entry.height == 0 { entry.hi.time } else { entry.lo.time };
            if oldest_left >= limit {
                return Ok(());
            }
            if entry.height > 0 {
                self.unfold(layout, index, rows)?;
                continue;
            }
            self.folded_to = entry.hi.time.saturating_add(1);
            if !entry.is_tile() {
                let page = UnitView { unit: self, layout, rows }.page(entry.row)?;
                self.replace_by_tiles(layout, fold, index, &page);
                self.fold_runs(layout, rows)?;
            }
        }
        Ok(())
    }

    /// Puts tiles in place of a page, if they are smaller.
    fn replace_by_tiles(&mut self, layout: &Layout, fold: Fold, index: usize, page: &EventBuf) {
        let Some(mut tiles) = smaller_tiles(layout, fold, page) else { return };
        self.drop_row(self.entries[index].row);
        let is_continued = |before: &&mut Entry| {
            before.is_tile() && fold.tile_of(before.lo.time) == fold.tile_of(tiles[0].lo.time)
        };
        let before = index.checked_sub(1).and_then(|before| self.entries.get_mut(before));
        if let Some(before) = before.filter(is_continued) {
            before.take_in(layout, &tiles[0]);
            tiles.remove(0);
        }
        self.entries.splice(index..=index, tiles);
    }

    /// Tiles for a page that was worth more than they, until late events came to it.
    pub(super) fn tiles_instead(
        &self,
        layout: &Layout,
        rules: &UnitRules,
        page: &EventBuf,
    ) -> Option<Vec<Entry>> {
        let fold = rules.fold.filter(|_| page.last_order(layout).is_some_and(|o| o.time < self.folded_to))?;
        smaller_tiles(layout, fold, page)
    }

    /// What stands for a tile now that a late event has come to it.
    pub(super) fn insert_at_tile(
        &mut self,
        layout: &Layout,
        rules: &UnitRules,
        mut tile: Entry,
        event: &EventBuf,
    ) -> Vec<Entry> {
        let mut late = Entry::tile(layout, event);
        if let Some(fold) = rules.fold {
            if fold.tile_of(late.lo.time) == fold.tile_of(tile.lo.time) {
                tile.take_in(layout, &late);
                return vec![tile];
            }
            if late.lo.time >= fold.limit(self.row_clock) {
                late = self.add_page(layout, event);
            }
        }
        if late.lo < tile.lo { vec![late, tile] } else { vec![tile, late] }
    }
}
