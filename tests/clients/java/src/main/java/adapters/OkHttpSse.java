package adapters;

import java.util.concurrent.TimeUnit;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.sse.EventSource;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;

/** okhttp-sse: one response; coming back is left to its user. */
public final class OkHttpSse {
  private OkHttpSse() {}

  public static void main(String[] arguments) {
    Request.Builder request = new Request.Builder().url(arguments[0]);
    if (!arguments[1].isEmpty()) {
      request.header("Last-Event-ID", arguments[1]);
    }
    OkHttpClient client = new OkHttpClient.Builder().readTimeout(30, TimeUnit.SECONDS).build();
    EventSources.createFactory(client).newEventSource(request.build(), new Listener());
  }

  private static final class Listener extends EventSourceListener {
    @Override
    public void onEvent(EventSource source, String id, String type, String data) {
      Report.event(type, data, id);
    }

    @Override
    public void onClosed(EventSource source) {
      Report.end("closed");
    }

    @Override
    public void onFailure(EventSource source, Throwable trouble, Response response) {
      Report.error(trouble == null && response != null ? "status " + response.code() : trouble);
      Report.end("failed");
    }
  }
}
