// Checks the gateway's promise from outside: the publisher numbers its events without a hole, so
// every number that does not come must have been told as a gap before the next one that does.

export class Sequence {
  #run = null;
  #last = 0;
  isGapTold = false; // since the newest number
  told = 0;
  silent = 0;
  twice = 0;

  // A gap that covers the numbered channel was told.
  gap() {
    this.isGapTold = true;
  }

  // Takes the next number of a publisher's run; returns how many are missing before it.
  take(run, number) {
    const isKnown = run === this.#run;
    if (isKnown && number <= this.#last) {
      this.twice += 1;
      return 0;
    }
    const missing = isKnown ? number - this.#last - 1 : 0;
    if (this.isGapTold) this.told += missing;
    else this.silent += missing;
    this.#run = run;
    this.#last = number;
    this.isGapTold = false;
    return missing;
  }
}
