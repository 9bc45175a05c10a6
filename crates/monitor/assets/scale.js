// Axes: from values to pixels, and the ticks between.

import { clock, day } from './words.js';

const MINUTES = 60_000;
const HOURS = 3_600_000;
const DAYS = 86_400_000;
const INTERVALS = [
  MINUTES, 5 * MINUTES, 15 * MINUTES, 30 * MINUTES, HOURS, 3 * HOURS, 6 * HOURS, 12 * HOURS,
  DAYS, 2 * DAYS, 7 * DAYS, 14 * DAYS, 30 * DAYS, 91 * DAYS, 365 * DAYS,
];

/** Ticks of a time axis, at most so many. They are at whole hours and days of this time zone. */
export function times(from, to, most) {
  const interval = INTERVALS.find((one) => (to - from) / one <= most) ?? INTERVALS.at(-1);
  const ticks = [];
  const at = new Date(from);
  if (interval >= DAYS) at.setHours(0, 0, 0, 0);
  else if (interval >= HOURS) at.setHours(at.getHours() - (at.getHours() % (interval / HOURS)), 0, 0, 0);
  else at.setMinutes(at.getMinutes() - (at.getMinutes() % (interval / MINUTES)), 0, 0);
  while (at.getTime() <= to && ticks.length <= 2 * most) {
    if (at.getTime() >= from) ticks.push(at.getTime());
    // Days may have 23 or 25 hours.
    if (interval >= DAYS) at.setDate(at.getDate() + interval / DAYS);
    else at.setTime(at.getTime() + interval);
  }
  const text = (tick) => {
    const midnight = new Date(tick).getHours() === 0 && new Date(tick).getMinutes() === 0;
    return interval >= DAYS || midnight ? day(tick) : clock(tick);
  };
  return ticks.map((tick) => ({ at: tick, text: text(tick) }));
}

/** Round numbers from 0 to a maximum, about so many. */
export function linear(most, count) {
  const raw = Math.max(most, 1e-9) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const ticks = [];
  for (let at = 0; at <= most + step * 1e-6; at += step) ticks.push(Number(at.toPrecision(12)));
  return ticks;
}

/** Ticks of a logarithmic axis. */
export function logarithmic(least, most) {
  const ticks = [];
  const first = Math.floor(Math.log10(least));
  const decades = Math.log10(most / least);
  const factors = decades > 3 ? [1] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  for (let power = first; power <= Math.ceil(Math.log10(most)); power += 1) {
    for (const factor of factors) {
      const at = Number((factor * 10 ** power).toPrecision(12));
      if (at >= least && at <= most) ticks.push(at);
    }
  }
  return ticks;
}

/** The place in a sorted array of the first value that is not below. */
export function lower(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
