/** A version of an adapter, as commands take it. */
import { exitCodes, Failure } from "../failure.ts";

/** `pirate@2` in its parts; of `pirate` the version is undefined. */
export function splitVersion(name: string): { adapter: string; version: number | undefined } {
  const [, adapter = name, own] = /^(.*)@([1-9]\d{0,8})$/.exec(name) ?? [];
  return { adapter, version: own === undefined ? undefined : Number(own) };
}

/**
 * `pirate@2`, or `pirate` and `2`.
 * @param command - as it is typed, for the message.
 * @throws Failure VERSION_MISSING
 */
export function versionNamed(name: string, given: number | undefined, command: string): { adapter: string; version: number } {
  const { adapter, version: own } = splitVersion(name);
  const version = own ?? given;
  if (version === undefined || (given !== undefined && given !== version)) {
    throw new Failure(exitCodes.usage, "VERSION_MISSING", `which version of ${adapter}? Say \`loraline ${command} ${adapter}@VERSION\`.`, {
      param: "version",
    });
  }
  return { adapter, version };
}
