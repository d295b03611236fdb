/**
 * Pure: how many requests of one tenant a gateway works on at once, so that one that asks for all it can leaves others their time.
 *
 * A gateway's work is done by one thread, in the order in which it comes. While that thread has time left, nobody waits. When it has not, and
 * more than one tenant is there, the most that one may have at once becomes smaller, by a fifth of what the busiest one has, until there is
 * time left again; then it grows again.
 */

/** What may be at once of one tenant, whatever the others do: who has no more never waits. */
export const always = 4;
/** Shares of time in which the thread was at work. */
const busy = 0.8;
const calm = 0.6;
/** Above so many there is no limit. */
const most = 2000;

interface Load {
  /** Infinity: none. */
  limit: number;
  /** Share of the last moments in which the thread was at work, from 0 to 1. */
  utilization: number;
  /** Tenants that asked for something lately. */
  tenants: number;
  /** Requests of the busiest tenant that are under way. */
  highest: number;
}

/** @returns the next limit. */
export function decideTurns({ limit, utilization, tenants, highest }: Load): number {
  if (tenants < 2) return Number.POSITIVE_INFINITY;
  if (utilization > busy) return Math.max(always, Math.min(limit, highest) * 0.8);
  if (utilization < calm) return limit * 1.1 > most ? Number.POSITIVE_INFINITY : limit * 1.1;
  return limit;
}
