/** Waits until the serve controller has carried out a command about an adapter, or has refused it. */
import { adapterKey, type AdapterState, buckets, consumers } from "@loraline/contracts";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import type { GatewayContext } from "../context.ts";

/** How long a request waits for the controller. */
const followedWithinMs = 3000;

/** Makes code and message for a command that was not carried out in time. */
export type Unfollowed = (adapter: AdapterState) => { code: string; message: string };

interface CommandFollower {
  /** The adapter; undefined: the tenant has none of this name. */
  adapter(tenant: string, name: string): Promise<AdapterState | undefined>;
  /**
   * @param command - sequence of the command's message.
   * @param holds - whether the adapter is as the command wants it.
   * @returns the adapter after the command was carried out.
   * @throws PermanentError 409 with the controller's reason when it was refused.
   * @throws RetryLaterError with `unfollowed`'s code if the command was not carried out in time; `version_loading` if it was accepted and
   * waits until its version is loaded.
   */
  follow(
    at: { tenant: string; adapter: string },
    command: number,
    holds: (adapter: AdapterState) => boolean,
    unfollowed: Unfollowed,
  ): Promise<AdapterState>;
}

export async function createCommandFollower({ bus }: Pick<GatewayContext, "bus">): Promise<CommandFollower> {
  const adapters = await bus.bucket(buckets.adapters);
  const adapter: CommandFollower["adapter"] = async (tenant, name) =>
    /^[a-z0-9-]+$/.test(name) ? (await adapters.get(adapterKey({ tenant, adapter: name })))?.value : undefined;
  return {
    adapter,
    async follow(at, command, holds, unfollowed) {
      for (const end = performance.now() + followedWithinMs; ;) {
        const state = await adapter(at.tenant, at.adapter);
        if (state === undefined) throw new Error(`KV adapters has no ${at.tenant}/${at.adapter} any more`);
        if (state.history.some((line) => line.command === command) || holds(state)) return state;
        const letter = await bus.deadLetters.of(consumers.serveAdapterCommands, at.tenant, command);
        if (letter !== undefined) throw new PermanentError(letter.code, letter.message, { status: 409 });
        if (performance.now() >= end) {
          if (state.awaiting?.command === command) {
            throw new RetryLaterError(
              "version_loading",
              2000,
              `Version ${state.awaiting.version} of ${at.adapter} was retired. It is being loaded again, and the alias moves to it as soon as it is proven.`,
            );
          }
          const { code, message } = unfollowed(state);
          throw new RetryLaterError(
            code,
            2000,
            `${message}: the serve controller has not answered. It will follow the command when it is back.`,
          );
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    },
  };
}
