/** The audit log: the stream AUDIT, which no client can delete from. */
import { type AuditAction, auditEntry, type AuditEntry, auditSubject, auditSubjectsOf, streams, tenantName } from "@loraline/contracts";
import { DeliverPolicy, jetstream, jetstreamManager, type StoredMsg } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";

/** Messages that one page reads at most, so that a filter which matches nothing ends. */
const mostRead = 5000;

/** An entry with its place in the stream and NATS' own time. */
interface StoredAuditEntry extends AuditEntry {
  seq: number;
  time: string;
}

export interface Audit {
  /** Resolves when the entry is stored. Recording the same id again within an hour stores nothing. */
  record(entry: AuditEntry & { action: AuditAction }): Promise<void>;
  /** How many entries of the last 24 hours say who may do what: all but the everyday ones. */
  countOfDay(tenant: string): Promise<number>;
  /**
   * The newest entries first.
   * @param query.tenant - absent: of every tenant.
   * @param query.before - only entries with a smaller `seq`.
   * @returns `next`: the `before` of the next page, which may be there also when this page is short; null: there is no more.
   */
  page(query: {
    tenant?: string | undefined;
    before?: number | undefined;
    limit: number;
    matches?: (entry: AuditEntry) => boolean;
  }): Promise<{ entries: StoredAuditEntry[]; next: number | null }>;
}

export function createAudit(nc: NatsConnection): Audit {
  const stream = streams.AUDIT.name;
  return {
    async record(entry) {
      const msgID = `${entry.tenant}/${entry.id}`;
      const body = JSON.stringify(auditEntry.parse(entry));
      await jetstream(nc).publish(auditSubject(entry.tenant, entry.action), body, { msgID, expect: { streamName: stream }, retries: 3 });
    },
    async countOfDay(tenant) {
      const start = new Date(Date.now() - 24 * 60 * 60_000).toISOString();
      const from = {
        deliver_policy: DeliverPolicy.StartTime,
        opt_start_time: start,
        filter_subjects: auditSubject(tenantName.parse(tenant), ""),
      };
      const consumer = await jetstream(nc).consumers.get(stream, from);
      try {
        return (await consumer.info(true)).num_pending;
      } finally {
        await consumer.delete().catch(() => false);
      }
    },
    async page({ tenant, before = Number.POSITIVE_INFINITY, limit, matches = () => true }) {
      const jsm = await jetstreamManager(nc);
      const { state } = await jsm.streams.info(stream);
      const subjects = tenant === undefined ? ["audit.>"] : auditSubjectsOf(tenantName.parse(tenant));
      const entries = new Map<string, StoredAuditEntry>();
      let end = Math.min(before - 1, state.last_seq);
      let read = 0;
      // Streams are read forwards only: stretches of growing length, from the newest one backwards.
      for (let length = limit * 2; end >= state.first_seq && state.messages > 0 && read < mostRead; length *= 4) {
        const from = Math.max(state.first_seq, end - length + 1);
        const stretch: StoredMsg[] = [];
        for (const subject of subjects) {
          for (let seq = from; seq <= end;) {
            const some = await messages(jsm.direct.getBatch(stream, { seq, next_by_subj: subject, batch: Math.min(length, 1000) }));
            read += some.length;
            stretch.push(...some.filter((message) => message.seq <= end));
            seq = (some.at(-1)?.seq ?? end) + 1;
          }
        }
        for (const message of stretch.toSorted((a, b) => b.seq - a.seq)) {
          const parsed = auditEntry.safeParse(parseJson(message.string()));
          if (!parsed.success || !matches(parsed.data)) continue;
          const id = `${parsed.data.tenant}/${parsed.data.id}`;
          // Of an entry that was written twice the first one counts, which comes last here.
          entries.set(id, { ...parsed.data, seq: message.seq, time: message.time.toISOString() });
          if (entries.size === limit) return { entries: [...entries.values()], next: message.seq > state.first_seq ? message.seq : null };
        }
        end = from - 1;
      }
      return { entries: [...entries.values()], next: end >= state.first_seq && state.messages > 0 ? end + 1 : null };
    },
  };
}

async function messages(reading: Promise<AsyncIterable<StoredMsg>>): Promise<StoredMsg[]> {
  try {
    return await Array.fromAsync(await reading);
  } catch (error) {
    if (/no messages|message not found|404/i.test((error as Error).message)) return [];
    throw error;
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
