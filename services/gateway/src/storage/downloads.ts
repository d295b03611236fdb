/** Files that are being read out of the object store: each holds memory for as long as its reader likes, so they are counted by tenant. */
import { RetryLaterError } from "@loraline/runtime";
import type { FastifyReply } from "fastify";

export interface Downloads {
  /**
   * Counts a download of the tenant until its answer is over, or its reader gone.
   * @throws RetryLaterError `too_many_downloads`
   */
  begin(tenant: string, reply: Pick<FastifyReply, "raw">): void;
}

/** Of one tenant at one gateway. Each holds a few hundred KiB. */
const downloadsOfTenant = 64;

export function createDownloads(most = downloadsOfTenant): Downloads {
  const under = new Map<string, number>();
  return {
    begin(tenant, { raw }) {
      const others = under.get(tenant) ?? 0;
      if (others >= most) {
        const message = `${others} downloads of this tenant are under way at this gateway, which is as many as may be at once. Ask again when one has ended.`;
        throw new RetryLaterError("too_many_downloads", 2000, message);
      }
      if (raw.closed) return;
      under.set(tenant, others + 1);
      raw.once("close", () => {
        const left = (under.get(tenant) ?? 1) - 1;
        if (left > 0) under.set(tenant, left);
        else under.delete(tenant);
      });
    },
  };
}
