/**
 * Loaded into a service's process with `--import`: its wall clock shows as many milliseconds more as the file LORALINE_TEST_CLOCK says. All
 * that a service knows of the time of day comes from `Date`; durations come from the monotonic clock, which no step of a real clock
 * changes either.
 */
import { readFileSync } from "node:fs";

const RealDate = Date;
const path = process.env.LORALINE_TEST_CLOCK;
let offset = 0;
const read = () => {
  try {
    offset = Number(readFileSync(path, "utf8")) || 0;
  } catch {
    offset = 0;
  }
};
if (path !== undefined) {
  read();
  setInterval(read, 50).unref();
  globalThis.Date = class Date extends RealDate {
    constructor(...given) {
      if (given.length === 0) super(RealDate.now() + offset);
      else super(...given);
    }
    static now() {
      return RealDate.now() + offset;
    }
  };
}
