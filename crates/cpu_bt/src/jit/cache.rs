//! The translations of one machine, shared by its vCPUs: found by physical address and mode, linked to
//! each other, and unmade line by line when their bytes change.

use super::arena::Arena;
use super::emit::Emit;
use super::groups::{Form, Groups};
use super::guessing::{Experience, Guessing, Learned};
use super::state::NO_EXIT;
use super::stubs::{self, Stubs};
use crate::block::cache::AddressHasher;
use crate::mmu::guess::GUESSES;
use crate::vm::line_mask;
use iced_x86::Register;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// What, besides its bytes, a translation depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) u8);

/// One trace of translated code.
pub(crate) struct Translation {
    /// Guest-physical address of its first instruction.
    pub(crate) gpa: u64,
    pub(crate) key: Key,
    /// Entry from code in the same page.
    pub(crate) direct: u64,
    /// The same from further up, which need not look for requests.
    pub(crate) forward: u64,
    /// Entry with the target's linear address in S0, which it verifies.
    pub(crate) verified: u64,
    /// Code that leaves for its first instruction: where the direct entry leads once it is void.
    pub(crate) depart: u64,
    /// The 64-byte lines of its page that it was made from.
    pub(crate) lines: u64,
    /// Frame number of the page in which its first instruction ends, if that is another one.
    pub(crate) second: Option<u64>,
    /// Length of its code, from the verified entry on.
    pub(crate) len: u32,
    /// It branches back to its own head.
    pub(crate) loops: bool,
    /// The exit that was linked to it last, or [`NO_EXIT`].
    pub(crate) linked: u32,
}

/// A branch out of a trace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// Address of the 32-bit distance to change.
    pub(crate) patch: u64,
    /// Physical page of the trace.
    pub(crate) page: u64,
    pub(crate) key: Key,
    /// The target lies in the same linear page.
    pub(crate) same_page: bool,
    /// It lies further down than the head of the trace.
    pub(crate) forward: bool,
    /// The index of the translation that it is linked to, or [`NO_EXIT`].
    pub(crate) to: u32,
    /// The exit that was linked to that before, or [`NO_EXIT`].
    pub(crate) before: u32,
}

/// A translation that became void.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voided {
    /// Offset in its page of its first instruction.
    pub(crate) offset: u16,
    pub(crate) verified: u64,
}

/// All translations of a machine.
pub(crate) struct CodeCache {
    arena: Option<Arena>,
    pub(crate) stubs: Stubs,
    stubs_len: usize,
    leave: u64,
    size_max: usize,
    list: Vec<Translation>,
    by_address: Map<(u64, Key), u32>,
    by_page: Map<u64, Vec<u32>>,
    /// Void translations whose entries lead to the successor once there is one.
    stale: Map<(u64, Key), u32>,
    exits: Vec<Exit>,
    /// The last translations that became void, and how many did in all.
    voided: VecDeque<Voided>,
    voided_count: u64,
    /// Number of the guess that the next trace gets.
    next_guess: u32,
    /// By the physical address of an instruction, what is known of how often its page is guessed wrongly.
    guessing: Map<u64, Guessing>,
    /// How often that has changed.
    guessing_changes: u64,
    /// Nothing may be added or found: the arena is about to be emptied.
    pub(crate) emptying: bool,
}

/// Where a trace will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The address of its code.
    pub(crate) at: u64,
    /// The number of its first exit.
    pub(crate) exit: u32,
    /// How often it has changed whose pages are guessed.
    guessing_changes: u64,
}

impl Exit {
    /// Which entry of a translation it leads to.
    fn entry_of(&self, target: &Translation) -> u64 {
        match self.same_page {
            true if self.forward => target.forward,
            true => target.direct,
            false => target.verified,
        }
    }
}

/// What voiding part of a page has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Invalidated {
    /// The lines that translations still valid were made from.
    pub(crate) remaining: u64,
    /// Something was voided.
    pub(crate) any: bool,
}

/// Room that must be left before a trace is translated; no trace is as long.
const TRACE_LEN_MAX: usize = 64 * 1024;
/// The lines of its second page that an instruction which crosses pages may end in.
pub(crate) const SECOND_LINES: u64 = 1;
/// How many void translations are remembered.
const VOIDED_MAX: usize = 256;
/// The least size of a cache.
pub(crate) const SIZE_MIN: usize = 4 * TRACE_LEN_MAX;

impl CodeCache {
    /// Creates a cache of at most `size_max` bytes of code; memory is taken at the first translation.
    pub(crate) fn new(size_max: usize) -> CodeCache {
        CodeCache {
            arena: None,
            stubs: Stubs::default(),
            stubs_len: 0,
            leave: 0,
            size_max: size_max.max(SIZE_MIN),
            list: Vec::new(),
            by_address: Map::default(),
            by_page: Map::default(),
            stale: Map::default(),
            exits: Vec::new(),
            voided: VecDeque::new(),
            voided_count: 0,
            next_guess: 1,
            guessing: Map::default(),
            guessing_changes: 0,
            emptying: false,
        }
    }

    /// Makes the arena and the common routines, once. False when the host gives no code memory.
    pub(crate) fn prepare(&mut self) -> bool {
        if self.arena.is_none() {
            let Ok(mut arena) = Arena::new(self.size_max) else { return false };
            let mut e = Emit::new(arena.next());
            self.stubs = stubs::generate(&mut e, std::arch::is_x86_feature_detected!("avx"));
            arena.push(&e.finish());
            self.stubs_len = arena.used();
            self.leave = self.stubs.leave;
            self.arena = Some(arena);
        }
        true
    }

    fn arena(&mut self) -> &mut Arena {
        self.arena.as_mut().expect("prepared before")
    }

    /// Whether the arena has to be emptied before anything is added.
    pub(crate) fn is_full(&mut self) -> bool {
        self.arena().room() < TRACE_LEN_MAX
    }

    /// Drops all translations. No vCPU executes one or remembers its address.
    pub(crate) fn empty(&mut self) {
        let keep = self.stubs_len;
        self.arena().truncate(keep);
        self.list.clear();
        self.by_address.clear();
        self.by_page.clear();
        self.stale.clear();
        self.exits.clear();
        self.voided.clear();
        self.guessing.clear();
        self.emptying = false;
    }

    /// Gives back the room that is kept for translations to come.
    pub(crate) fn give_back(&mut self) {
        if let Some(arena) = &mut self.arena {
            arena.give_back();
        }
        self.list.shrink_to_fit();
        self.exits.shrink_to_fit();
        self.by_address.shrink_to_fit();
        self.by_page.values_mut().for_each(Vec::shrink_to_fit);
        self.by_page.shrink_to_fit();
        self.stale.shrink_to_fit();
    }

    /// Bytes of code in use.
    pub(crate) fn used(&self) -> usize {
        self.arena.as_ref().map_or(0, Arena::used)
    }

    /// Where the next trace will stand, and what else its code depends on.
    pub(crate) fn place(&mut self) -> Place {
        let (exit, guessing_changes) = (self.exits.len() as u32, self.guessing_changes);
        Place { at: self.arena().next(), exit, guessing_changes }
    }

    /// The valid translation of a physical address.
    pub(crate) fn find(&self, gpa: u64, key: Key) -> Option<&Translation> {
        if self.emptying {
            return None;
        }
        self.by_address.get(&(gpa, key)).map(|&index| &self.list[index as usize])
    }

    /// The host code of a translation, and its address.
    pub(crate) fn code_of(&self, gpa: u64, key: Key) -> Option<(u64, Vec<u8>)> {
        let found = self.find(gpa, key)?;
        // SAFETY: the arena's executable mapping can be read, and a valid translation lies in it.
        let code = unsafe { std::slice::from_raw_parts(found.verified as *const u8, found.len as usize) };
        Some((found.verified, code.to_vec()))
    }

    /// Numbers of guesses for the groups of a trace at `gpa`. Those known to be wrong often are told so.
    pub(crate) fn guesses_for(&mut self, groups: &mut Groups, gpa: u64, numbers: &mut Vec<u32>) {
        // The last step that needs the guess for the stack.
        let mut stack = [None; 2];
        numbers.clear();
        for group in &mut groups.list {
            group.guessing = self.guessing.get(&(gpa & !0xfff | group.first as u64)).copied();
            // All code shares one guess for the stack. No two groups of a trace may share any at a time.
            let number = match &mut stack[group.write as usize] {
                last if group.form == Form::register(Register::RSP)
                    && last.is_none_or(|last| last < group.check_at) =>
                {
                    *last = Some(group.last);
                    0
                }
                _ => {
                    self.next_guess = self.next_guess % (GUESSES as u32 - 1) + 1;
                    self.next_guess
                }
            };
            numbers.push(number);
        }
    }

    /// Notes what was found out about the guess for the access at `gpa`. If another way of finding its page is to be
    /// tried, translations with it become void.
    pub(crate) fn learn(&mut self, gpa: u64, experience: Experience) -> Learned {
        let before = self.guessing.get(&gpa).copied();
        let Some(after) = Guessing::after(before, experience) else {
            return if matches!(before, Some(Guessing::Trusted(_))) {
                Learned::Known
            } else {
                Learned::Nothing
            };
        };
        self.guessing.insert(gpa, after);
        self.guessing_changes += 1;
        match self.invalidate(gpa >> 12, line_mask(gpa & 0xfff, 1)).any {
            true => Learned::Voided,
            false => Learned::Nothing,
        }
    }

    /// What is known of accesses by now.
    #[cfg(test)]
    pub(crate) fn learned(&self) -> impl Iterator<Item = Guessing> + '_ {
        self.guessing.values().copied()
    }

    /// The translations that became void since `seen`, which is the number of those seen before; it is brought up to
    /// date. As far as they are remembered.
    pub(crate) fn voided_since(&self, seen: &mut u64) -> impl Iterator<Item = Voided> + '_ {
        let unseen = self.voided_count - std::mem::replace(seen, self.voided_count);
        let skipped = self.voided.len().saturating_sub(unseen as usize);
        self.voided.range(skipped..).copied()
    }

    /// Adds a trace made for the present [`Place`], and its exits.
    pub(crate) fn add(&mut self, mut translation: Translation, code: &[u8], exits: &[Exit]) {
        self.arena().push(code);
        self.exits.extend_from_slice(exits);
        let (gpa, key) = (translation.gpa, translation.key);
        let index = self.list.len() as u32;
        if let Some(old) = self.stale.remove(&(gpa, key)) {
            let Translation { direct, verified, forward, linked, .. } = self.list[old as usize];
            let arena = self.arena();
            arena.patch_jump(direct, translation.direct);
            arena.patch_jump(verified, translation.verified);
            arena.patch_jump(forward, translation.forward);
            // What led there leads here, without a jump between.
            translation.linked = linked;
            let mut next = linked;
            while let Some(exit) = self.exits.get_mut(next as usize) {
                next = exit.before;
                if exit.to == old {
                    exit.to = index;
                    let (patch, to) = (exit.patch, exit.entry_of(&translation));
                    self.arena().patch_u32(patch, to.wrapping_sub(patch + 4) as u32);
                }
            }
        }
        for page in std::iter::once(gpa >> 12).chain(translation.second) {
            self.by_page.entry(page).or_default().push(index);
        }
        self.by_address.insert((gpa, key), index);
        self.list.push(translation);
    }

    /// Makes an exit go straight to the translation of its target from now on.
    /// False when that is not possible.
    pub(crate) fn link(&mut self, exit: u32, target_gpa: u64, key: Key) -> bool {
        let number = exit;
        let Some(&exit) = self.exits.get(number as usize) else { return false };
        let found = if self.emptying { None } else { self.by_address.get(&(target_gpa, key)).copied() };
        let Some(index) = found else { return false };
        if exit.key != key || exit.same_page && exit.page != target_gpa >> 12 {
            return false;
        }
        let target = &mut self.list[index as usize];
        let to = exit.entry_of(target);
        // One that two vCPUs take at once, in different address spaces, is linked twice: it stays in the list of
        // the first.
        let before = match exit.to {
            NO_EXIT => std::mem::replace(&mut target.linked, number),
            _ => exit.before,
        };
        self.exits[number as usize] = Exit { to: index, before, ..exit };
        self.arena().patch_u32(exit.patch, to.wrapping_sub(exit.patch + 4) as u32);
        true
    }

    /// Voids the translations of page `page` (a frame number) made from any of `lines`.
    pub(crate) fn invalidate(&mut self, page: u64, lines: u64) -> Invalidated {
        let Some(mut indices) = self.by_page.remove(&page) else { return Invalidated::default() };
        let (before, mut remaining) = (indices.len(), 0);
        indices.retain(|&index| {
            let translation = &self.list[index as usize];
            let (gpa, key) = (translation.gpa, translation.key);
            let own = if gpa >> 12 == page { translation.lines } else { 0 };
            let made_from = own | if translation.second == Some(page) { SECOND_LINES } else { 0 };
            if made_from & lines == 0 {
                remaining |= made_from;
                return true;
            }
            if self.by_address.get(&(gpa, key)) != Some(&index) {
                // Voided by way of its other page.
                return false;
            }
            let arena = self.arena.as_mut().expect("there are translations");
            arena.patch_jump(translation.direct, translation.depart);
            arena.patch_jump(translation.forward, translation.depart);
            arena.patch_jump(translation.verified, self.leave);
            self.by_address.remove(&(gpa, key));
            self.stale.insert((gpa, key), index);
            if self.voided.len() == VOIDED_MAX {
                self.voided.pop_front();
            }
            self.voided.push_back(Voided { offset: (gpa & 0xfff) as u16, verified: translation.verified });
            self.voided_count += 1;
            false
        });
        let any = indices.len() < before;
        if !indices.is_empty() {
            self.by_page.insert(page, indices);
        }
        Invalidated { remaining, any }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 64;

    /// Adds a translation of nothing at `gpa` with one exit, whose distance lies in its last eight bytes.
    fn add(cache: &mut CodeCache, gpa: u64, (same_page, forward): (bool, bool)) -> (Translation, u32) {
        let place = cache.place();
        let translation = |at: u64| Translation {
            gpa,
            key: Key::default(),
            verified: at,
            direct: at + 16,
            forward: at + 32,
            depart: at + 48,
            lines: line_mask(gpa & 0xfff, 1),
            second: None,
            len: LEN as u32,
            loops: false,
            linked: NO_EXIT,
        };
        let exit = Exit {
            patch: place.at + 56,
            page: gpa >> 12,
            key: Key::default(),
            same_page,
            forward,
            to: NO_EXIT,
            before: NO_EXIT,
        };
        cache.add(translation(place.at), &[0x90; LEN], &[exit]);
        (translation(place.at), place.exit)
    }

    /// Where the exit of a translation leads.
    fn target(cache: &CodeCache, exit: u32) -> u64 {
        let patch = cache.exits[exit as usize].patch;
        // SAFETY: in the arena, where there is code.
        let distance = unsafe { (patch as *const i32).read() };
        patch.wrapping_add(4).wrapping_add_signed(distance as i64)
    }

    #[test]
    fn what_led_to_a_void_translation_leads_to_its_successor_at_once() {
        let mut cache = CodeCache::new(SIZE_MIN);
        assert!(cache.prepare());
        let (old, _) = add(&mut cache, 0x5040, (true, false));
        let kinds = [(false, false), (true, false), (true, true)];
        let exits = kinds.map(|kind| add(&mut cache, 0x5000, kind).1);
        let (other, _) = add(&mut cache, 0x5080, (true, false));
        for exit in exits {
            assert!(cache.link(exit, 0x5040, Key::default()));
            // As another vCPU may do at the same time.
            assert!(cache.link(exit, 0x5040, Key::default()));
        }
        assert_eq!(exits.map(|exit| target(&cache, exit)), [old.verified, old.direct, old.forward]);
        for _ in 0..3 {
            assert!(cache.invalidate(5, line_mask(0x40, 1)).any);
            assert!(!cache.link(exits[0], 0x5040, Key::default()), "there is none now");
            let (new, _) = add(&mut cache, 0x5040, (true, false));
            assert_eq!(exits.map(|exit| target(&cache, exit)), [new.verified, new.direct, new.forward]);
        }
        // One that was linked elsewhere since stays there.
        assert!(cache.link(exits[0], 0x5080, Key::default()));
        cache.invalidate(5, line_mask(0x40, 1));
        add(&mut cache, 0x5040, (true, false));
        assert_eq!(target(&cache, exits[0]), other.verified);
    }

    #[test]
    fn void_translations_are_told_once_as_far_as_they_are_remembered() {
        let mut cache = CodeCache::new(SIZE_MIN);
        assert!(cache.prepare());
        let mut seen = 0;
        assert_eq!(cache.voided_since(&mut seen).count(), 0);
        let (first, _) = add(&mut cache, 0x5040, (true, false));
        cache.invalidate(5, u64::MAX);
        let voided: Vec<_> = cache.voided_since(&mut seen).map(|v| (v.offset, v.verified)).collect();
        assert_eq!(voided, [(0x40, first.verified)]);
        assert_eq!(cache.voided_since(&mut seen).count(), 0);
        for _ in 0..VOIDED_MAX + 10 {
            add(&mut cache, 0x5040, (true, false));
            cache.invalidate(5, u64::MAX);
        }
        assert_eq!(cache.voided_since(&mut seen).count(), VOIDED_MAX);
    }
}
