// A line of the last latencies, drawn as two paths; colours and sizes are the style sheet's.

const LENGTH = 150;
const HEIGHT = 40;
const TOPS_MS = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
const say = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toString());

export class Plot {
  #line;
  #breaks;
  #top;
  #text;
  #points = []; // a latency in ms, or null where the connection or the source was lost

  constructor(line, breaks, top, text) {
    this.#line = line;
    this.#breaks = breaks;
    this.#top = top;
    this.#text = text;
  }

  add(ms) {
    this.#push(Math.max(0, ms));
  }

  break() {
    if (this.#points.length && this.#points.at(-1) !== null) this.#push(null);
  }

  #push(point) {
    this.#points.push(point);
    if (this.#points.length > LENGTH) this.#points.shift();
    this.#draw();
  }

  #draw() {
    const known = this.#points.filter((point) => point !== null).sort((a, b) => a - b);
    if (!known.length) return;
    const top = TOPS_MS.find((ms) => ms >= known.at(-1)) ?? known.at(-1);
    let line = "";
    let breaks = "";
    let pen = "M";
    const left = LENGTH - this.#points.length;
    this.#points.forEach((point, index) => {
      const x = left + index + 0.5;
      if (point === null) {
        breaks += `M${x} 0V${HEIGHT}`;
        pen = "M";
      } else {
        line += `${pen}${x} ${(HEIGHT - 1 - (point / top) * (HEIGHT - 2)).toFixed(2)}`;
        pen = "L";
      }
    });
    this.#line.setAttribute("d", line);
    this.#breaks.setAttribute("d", breaks);
    this.#top.textContent = `${top} ms`;
    this.#text.textContent = `median ${say(quantile(known, 0.5))} ms, worst ${say(known.at(-1))} ms`;
  }
}
